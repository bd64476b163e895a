"""A throw-away SLURM of two virtual nodes on this machine, on the loopback alone (Debian's slurm-wlm and munge, root).

Everything lives in one folder: configuration, keys, sockets, logs. No systemd, no cgroups, no accounting database.
By hand: `python -m tests.slurm.cluster FOLDER` starts one and stops it at Ctrl-C.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job may start when its old credentials have expired: 120 s by default
AuthInfo=cred_expire=5,socket={folder}/munge.socket
# without these two the daemons listen on every interface
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] {cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=1:00:00 DefaultTime=10 OverSubscribe=FORCE:4 State=UP
"""
# any two character devices pass for GPUs: --gpus-per-node=2 is accepted
_GRES = "NodeName=n[1-2] Name=gpu File=/dev/zero\nNodeName=n[1-2] Name=gpu File=/dev/null\n"


def missing() -> str | None:
    """Why no cluster can be started here; None: it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a test cluster needs Linux and root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    return f"not installed (slurm-wlm, munge): {', '.join(absent)}" if absent else None


def search_path() -> str:
    """Where the programs are; the daemons are not on every user's PATH."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"


class Cluster:
    """Started by `start`; `environment` is for the commands that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self._pid_files = [folder / name for name in ("d-n1.pid", "d-n2.pid", "ctld.pid", "munged.pid")]

    def start(self) -> None:
        """Start munged, slurmctld and two slurmd, and wait until both nodes are idle.

        Raises:
            RuntimeError: a daemon does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        for name in ("ctld", "d-n1", "d-n2"):
            (self.folder / name).mkdir(exist_ok=True)
        host = socket.gethostname().split(".")[0]
        conf = _CONF.format(host=host, ports=_free_ports(), folder=self.folder, cpus=self._cpus())
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(_GRES)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        places = [f"--{what}={self.folder}/{name}" for what, name in _MUNGE_FILES.items()]
        self._daemon("munged", *places, "--force")
        self._daemon("slurmctld")
        self._wait("the controller", lambda: "UP" in self.call("scontrol", "ping"))
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-N", node)
        self._wait("the nodes", lambda: self.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2)

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.call("scancel", "--user=root")
        deadline = time.monotonic() + 15
        while self.call("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.3)
        for path in self._pid_files:
            if path.is_file():
                _end(int(path.read_text()))

    def call(self, *words: str) -> str:
        """Standard output of one of SLURM's commands."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False).stdout

    def _daemon(self, *words: str) -> None:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{words[0]} does not start: {done.stderr.strip()}")

    def _cpus(self) -> str:
        """The machine's topology as slurmd sees it; the nodes must not claim another one."""
        (self.folder / "slurm.conf").write_text("ClusterName=lab\nSlurmctldHost=localhost\n")
        found = re.search(r"CPUs=\d+ .*?ThreadsPerCore=\d+", self.call("slurmd", "-C"))
        return found.group(0) if found else f"CPUs={os.cpu_count()}"

    def _wait(self, what: str, ready: object, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come up in {seconds} s; see the logs in {self.folder}")
            time.sleep(0.2)


_MUNGE_FILES = {
    "key-file": "munge.key",
    "socket": "munge.socket",
    "pid-file": "munged.pid",
    "log-file": "munged.log",
    "seed-file": "munged.seed",
}


def _free_ports() -> tuple[int, int, int]:
    """One port for the controller, two adjoining ones for the nodes."""
    for first in range(17000, 18000, 3):
        try:
            for port in (first, first + 1, first + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first, first + 1, first + 2
    raise RuntimeError("no free ports for a test cluster")


def _end(pid: int) -> None:
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 1.0)):
        try:
            os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


if __name__ == "__main__":
    lab = Cluster(Path(sys.argv[1]).resolve())
    lab.start()
    print(f"export SLURM_CONF={lab.folder}/slurm.conf PATH={search_path()}", flush=True)
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores Ctrl-C otherwise
        signal.signal(stop, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        lab.stop()
