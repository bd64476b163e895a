"""Which tasks are worked on, fixed on dev before anything is trained, as a file that data takes."""

from __future__ import annotations

from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.evaluation.headroom import has_headroom
from promptcomp.files import write_atomic
from promptcomp.run.fitting import Outcome

_RULE = {
    "score": "the interval of the gain in accuracy or exact match (loss without either) is above 0, and the full "
    "context beats the most frequent label",
    "loss": "the interval of the gain in loss is above 0",
}


def write_choice(outcome: Outcome, file: Path, by: str) -> str:
    """Write the tasks that are kept and dropped, with the rule and the run; says so in a sentence.

    Raises:
        ConfigError: no task has headroom, or the file cannot be written.
    """
    import yaml

    splits = {} if outcome.results is None else outcome.results.splits
    tasks: dict[str, list[bool]] = {}
    for split in splits.values():
        for task in split.headroom_by_task:
            tasks.setdefault(task.task, []).append(has_headroom(task, by))
    keep = [name for name, found in tasks.items() if all(found)]
    if not keep:
        raise ConfigError(
            f"--keep-tasks: none of {len(tasks)} tasks has headroom, so {file} is not written; the run is {outcome.run}"
            + ("" if by == "loss" else " (--keep-by loss asks for less)")
        )
    found = {
        "rule": _RULE[by],
        "splits": list(splits),
        "results": str(outcome.run / "results.json"),
        "keep": keep,
        "drop": [name for name in tasks if name not in keep],
    }
    write_atomic(file, yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110))
    return f"{file}: {len(keep)} of {len(tasks)} tasks have headroom; take them with data.task_choice={file}"
