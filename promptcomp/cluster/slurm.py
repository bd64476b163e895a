"""SLURM's own commands: submit, ask, cancel. Their answers are read as text, whose fields all releases share."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptcomp.errors import ConfigError

_SECONDS = 60
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "PROMPTCOMP_RUN_DIRECTORY", "PROMPTCOMP_LAUNCHER")
_FIELDS = ("JobArrayID", "State", "Reason", "TimeUsed", "RestartCnt", "NodeList", "StartTime")


class SlurmError(ConfigError):
    """A command of SLURM is missing, refuses or does not answer; the message is its own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What SLURM says about a job or an element of an array."""

    id: str
    """12, 12_3, or 12_[4-7] for elements that wait."""
    state: str
    reason: str = ""
    elapsed: str = ""
    restarts: int | None = None
    nodes: str = ""
    start: str = ""

    @property
    def job(self) -> str:
        """The number without an element."""
        return self.id.partition("_")[0]

    @property
    def is_live(self) -> bool:
        """Waiting or running."""
        return self.state in LIVE


LIVE = frozenset(
    {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING"}
)  # fmt: skip


def submit(script: Path) -> str:
    """Submit a script; returns the job's number.

    Raises:
        SlurmError: there is no sbatch here, or it refuses.
    """
    answer = _call(["sbatch", "--parsable", str(script)]).stdout.strip()
    number = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not number.isdigit():
        raise SlurmError(f"sbatch gave no job number but {answer!r}")
    return number


def predicted_start(script: str) -> str:
    """SLURM's forecast for a script ("to start at ... on nodes ..."), which is not submitted.

    Raises:
        SlurmError: there is no sbatch here, or it refuses the script.
    """
    done = _call(["sbatch", "--test-only"], text=script)
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    found = re.search(r"to start at .*", said)
    return found.group(0) if found else said


def queue() -> list[Entry]:
    """This user's jobs that the controller still knows, finished ones too.

    Raises:
        SlurmError: there is no squeue here, or the controller does not answer.
    """
    fields = ",".join(f"{name}:|" for name in _FIELDS)
    words = ["squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", f"--Format={fields}"]
    entries = []
    for line in _call(words).stdout.splitlines():
        values = [value.strip() for value in line.split("|")]
        if len(values) > len(_FIELDS) - 1:
            number, state, reason, elapsed, restarts, nodes, start = values[: len(_FIELDS)]
            count = int(restarts) if restarts.isdigit() else None
            reason = "" if reason == "None" else reason
            entries.append(Entry(number, state, reason, elapsed, count, nodes, "" if start == "N/A" else start))
    return entries


def accounts(ids: Iterable[str]) -> list[Entry]:
    """What the accounting database says about jobs; nothing where a cluster has none."""
    wanted = ",".join(ids)
    if not wanted:
        return []
    words = ["sacct", "-P", "-n", "-X", "-j", wanted, "-o", "JobID,State,ExitCode,Elapsed,NodeList"]
    try:
        lines = _call(words).stdout.splitlines()
    except SlurmError:  # "accounting storage is disabled"
        return []
    entries = []
    for line in lines:
        number, state, code, elapsed, nodes = line.split("|")[:5]
        reason = "" if code == "0:0" else f"exit {code}"
        entries.append(
            Entry(number, state.split()[0], reason, elapsed, None, "" if nodes == "None assigned" else nodes)
        )
    return entries


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs.

    Raises:
        SlurmError: there is no scancel here, or it refuses.
    """
    _call(["scancel", *ids])


def _call(words: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    try:
        done = subprocess.run(
            words, input=text, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]} is not installed here; run this on a login node of the cluster") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{words[0]} does not answer ({error})") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).replace(f"{words[0]}: error: ", "").split())
        raise SlurmError(f"{words[0]} refuses: {said or f'exit code {done.returncode}'}")
    return done
