"""`promptcomp pretrain`: a base LM from a shipped recipe or a file, with progress."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.errors import command, did_you_mean


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    folder = Path(str(resources.files("promptcomp"))) / "experiments" / "pretrain"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """A shipped recipe, or a YAML file.

    Raises:
        ConfigError: neither is there.
    """
    known = recipes()
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    hint = did_you_mean(name, known, f"shipped: {', '.join(known)}; or give a .yaml file")
    raise ConfigError(f"{name!r} is no recipe; {hint}")


def run_pretrain(recipe: str, overrides: Sequence[str], output: Path | None, console: Console, as_json: bool) -> None:
    """Train, show loss and skills, and say how to use the model.

    Raises:
        ConfigError: unknown recipe, bad overrides, or an output folder that holds something else.
    """
    path = find_recipe(recipe)
    from promptcomp.toy.pretrain_loop import PretrainConfig, pretrain

    config = build(PretrainConfig, apply_overrides(read_yaml(path), overrides), source=path.name)
    output = output or Path("models") / path.stem
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty; name another folder with --output")
    started = time.monotonic()
    with _Display(console) as display:
        pretrain(config, output, display.step)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({"model": str(output), "seconds": seconds, "numbers": display.numbers}))
        return
    console.print(f"{output} holds the model, its tokenizer and recipe.json ({seconds:.0f} s).", highlight=False)
    use = command("fit", "--method", "METHOD", f"lm.path={output}")
    console.print(f"Use it with any experiment: {use}", highlight=False, markup=False, soft_wrap=True)


class _Display:
    """A bar on a terminal; elsewhere a line whenever skills were measured."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.numbers: dict[str, float] = {}
        self._skills = ""
        self._progress = Progress(
            TextColumn("[bold]pretrain[/bold]"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("", total=1, shown="")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: int, total: int, numbers: Mapping[str, float]) -> None:
        """Show one step; `numbers` has the loss and, now and then, the skills."""
        self.numbers.update(numbers)
        skills = {name: value for name, value in numbers.items() if name != "loss"}
        if skills:
            self._skills = "  ".join(f"{name} {value:.2f}" for name, value in skills.items())
            if not self.console.is_terminal:
                self.console.print(f"step {step}/{total}  loss {numbers['loss']:.3f}  {self._skills}", highlight=False)
        shown = f"loss {numbers['loss']:.3f}  {self._skills}"
        self._progress.update(self._bar, completed=step, total=total, shown=shown)
