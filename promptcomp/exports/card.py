"""The card of an exported folder: the front matter of its README, which hubs read, and the scores below it.

The front matter also lists the folder's files: what `promptcomp push` uploads.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from promptcomp.config import ConfigError
from promptcomp.documents import parse_yaml
from promptcomp.evaluation.formatting import held_out_text, many, value_text
from promptcomp.evaluation.results import Results, read_results
from promptcomp.experiment import Experiment
from promptcomp.files import check_file, read_text
from promptcomp.language_model.lm_config import BUILTIN, locate
from promptcomp.language_model.pretrained import PRETRAINED
from promptcomp.plain import printable
from promptcomp.run.run_directory import RunDirectory, recorded_command

if TYPE_CHECKING:
    from promptcomp.prompts.artifact import PromptInfo

CARD = "README.md"
_FENCE = "---\n"
_LIBRARIES = {"hf": "transformers", "transformers": "transformers", "peft": "peft"}


def with_card(page: str, about: Sequence[str], lm: str, method: str, to: str, files: Iterable[str]) -> str:
    """A README: front matter, the page of the export, and what is known of the content.

    Args:
        page: How it is loaded.
        about: Paragraphs for its end.
        lm: The LM's path as configured.
        method: What made it.
        to: Its format.
        files: All files of the folder besides this one.
    """
    head: dict[str, Any] = {
        "library_name": _LIBRARIES.get(to, "promptcomp"),
        "tags": ["promptcomp", "prompt-compression", method],
    }
    if (licence := licence_of(lm)) is not None:
        head["license"] = licence
    if "/" in lm and not Path(lm).is_absolute() and not Path(lm).exists():
        head["base_model"] = lm
    head["promptcomp"] = {"export": to, "files": sorted({*files, CARD})}
    said = "not known here" if licence is None else licence
    end = "\n\n".join((*about, f"Licence of the LM: {said}."))
    return f"{_FENCE}{yaml.safe_dump(head, sort_keys=False)}{_FENCE}\n{page}\n{printable(end)}\n"


def files_of(folder: Path) -> tuple[str, ...]:
    """The files of an export, which are all that is in its folder: what its card lists, and what `push` uploads.

    Raises:
        ConfigError: the folder is no export, a file of it is missing, or it holds others.
    """
    if not folder.exists():
        raise ConfigError(f"{folder}: no such folder")
    head = _front_matter(folder / CARD)
    own = head.get("promptcomp")
    files = own.get("files") if isinstance(own, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ConfigError(
            f"{folder}: is no export; `promptcomp export WHAT --to tensors -o FOLDER` makes one of a run or a prompt"
        )
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if missing := sorted(set(files) - found):
        raise ConfigError(f"{folder / missing[0]}: belongs to the export and is not there; export again")
    if foreign := sorted(found - set(files)):
        raise ConfigError(f"{folder / foreign[0]}: is no file of the export; move it away, then push")
    for file in (folder / name for name in files):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{file}: leads out of the folder; put the file itself there")
        check_file(file, "file of an export")
    return tuple(files)


def licence_of(lm: str) -> str | None:
    """The licence of an LM, as far as it is known without a network: by its name, or by the card in its folder."""
    if lm in PRETRAINED:
        return "other" if " " in PRETRAINED[lm].licence else PRETRAINED[lm].licence.lower()
    if lm.startswith(BUILTIN):
        return "apache-2.0"
    with contextlib.suppress(ConfigError):  # it may have moved
        found = _front_matter(Path(locate(lm)) / CARD).get("license")
        return str(found) if found else None
    return None


def _front_matter(card: Path) -> dict[str, Any]:
    """Empty where there is none."""
    if not card.is_file():
        return {}
    start, _, rest = read_text(card, "model card").partition(_FENCE)
    with contextlib.suppress(ValueError):
        head = {} if start.strip() else parse_yaml(rest.partition(_FENCE)[0])
        return head if isinstance(head, dict) else {}
    return {}


def of_run(run: RunDirectory, experiment: Experiment) -> list[str]:
    """What is known of a trained run: its data, its scores beside the bounds, and the command."""
    said = [f"## Data and scores\n\nData: `{experiment.data.name}`, seed {experiment.seed}."]
    if run.results.is_file():
        said.append(_scores(read_results(run.results)))
    else:
        said.append("The run has not been evaluated.")
    words = recorded_command(run) or ["promptcomp", "fit", "--config", "config.yaml"]
    command = shlex.join(words)
    return [*said, f"Made by\n\n```\n{command}\n```"]


def _scores(results: Results) -> str:
    names = {"method": results.title or results.method, "full_prompt": "full prompt", "no_prompt": "no prompt"}
    lines = ["| split | metric | " + " | ".join(names.values()) + " |", "|---|---|---|---|---|"]
    level = ""
    for name, split in results.splits.items():
        cells = [value_text(getattr(split, key), getattr(split, f"{key}_ci"), ends=".3f") for key in names]
        lines.append(f"| {name} | {split.metric} | " + " | ".join(cells) + " |")
        level = f"{split.confidence:.0%} intervals"
    bounds = f"; the bounds are {results.bounds}" if results.bounds else ""
    return "\n".join(lines) + (f"\n\nIn brackets: {level}{bounds}." if level else "")


def of_prompt(info: PromptInfo, command: str) -> list[str]:
    """What is known of a compressed prompt."""
    lines = [
        "## The prompt",
        f"{many(info.source_tokens, 'token')} became {many(info.slots, 'slot')}; method "
        f"`{info.method}`, {_settings(info.settings)}. "
        f"SHA-256 of the text: `{info.source_sha256}`. Hash of the LM's weights (promptcomp's): `{info.lm_hash}`.",
    ]
    lines += _held_out(info) if info.held_out else _of_its_run(info)
    return [*lines, f"Exported by\n\n```\n{command}\n```"]


_TITLES = {"kl": "KL", "top1": "same next token", "exact": "same answer", "gap_closed": "gap closed", "bytes": "in use"}


def _held_out(info: PromptInfo) -> list[str]:
    from promptcomp.evaluation.bootstrap import CONFIDENCE, wilson  # with numpy, which `push` does without

    count = round(info.cost.get("held_out_questions", 0))
    keys = list(next(iter(info.held_out.values())))

    def cell(key: str, row: Mapping[str, float]) -> str:
        if key == "exact" and count and row.get("kl", 1.0) > 0:  # not the whole text, which is as itself
            return value_text(row[key], wilson(row[key] * count, count), ends=".3f")
        return held_out_text(key, row[key]) if key in row else "-"

    table = [f"| in front | {' | '.join(_TITLES.get(key, key) for key in keys)} |", "|---" * (len(keys) + 1) + "|"]
    table += [f"| {name} | {' | '.join(cell(key, row) for key in keys)} |" for name, row in info.held_out.items()]
    asked = (
        f"{many(count, 'question')} that it was not trained with"
        if count
        else "held-out questions (their number is not known)"
    )
    said = (
        "KL is in nats a token; gap closed is 1 - KL / KL of no context. The bounds are no context and the whole text. "
        "The same questions have chosen the step that was kept, so the cartridge's figures are somewhat too "
        "good. KL and next tokens have no interval: the tokens of an answer depend on each other."
    )
    interval = f" In brackets: {CONFIDENCE:.0%} intervals (Wilson's)." if count else ""
    return [f"On {asked}, against the LM behind the whole text:", "\n".join(table), f"{said}{interval}"]


def _of_its_run(info: PromptInfo) -> list[str]:
    """Scores of the run that has made it, as far as it is still there."""
    with contextlib.suppress(ConfigError):
        results = None if info.run is None else read_results(RunDirectory(Path(info.run)).results)
        if results is not None and results.method == info.method:
            slots = results.size.memory_slots
            with_ = "" if slots is None else f", with {round(slots, 1):g} slots (mean over contexts)"
            return [
                f"This prompt was not measured; the compressor that made it was, on its test data{with_}:",
                _scores(results),
            ]
    return ["What it keeps of the prompt's effect was not measured."]


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"
