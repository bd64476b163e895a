"""`promptcomp pretrain`: a base LM from a shipped recipe or a file; no torch before it is found."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.documents import shipped
from promptcomp.errors import command, did_you_mean
from promptcomp.files import check_empty
from promptcomp.toy.recipe import PretrainConfig, TextCorpus


def run_pretrain(recipe: str, overrides: Sequence[str], output: Path | None, console: Console, as_json: bool) -> None:
    """Train, show loss and skills, and say how to use the model.

    Raises:
        ConfigError: unknown recipe, bad overrides, or an output folder that holds something else.
    """
    known = shipped("pretrain")
    if recipe not in known and not recipe.endswith((".yaml", ".yml")):
        hint = did_you_mean(recipe, known, f"shipped: {', '.join(known)}; or give a .yaml file")
        raise ConfigError(f"{recipe!r} is no recipe; {hint}")
    path = known.get(recipe, Path(recipe))
    config = build(PretrainConfig, apply_overrides(read_yaml(path), overrides), source=path.name)
    if isinstance(config.data, TextCorpus):
        config.data.check_places()
    output = output or Path("models") / path.stem
    check_empty(output)
    from promptcomp.toy.pretrain_loop import pretrain

    started, numbers = time.monotonic(), dict[str, float]()
    columns = TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[shown]}")
    bar = TextColumn("[bold]pretrain[/bold]"), BarColumn(bar_width=24), *columns, TimeElapsedColumn()
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:  # elsewhere a line at each check
        task = progress.add_task("", total=1, shown="")

        def show(step: int, total: int, new: Mapping[str, float]) -> None:
            numbers.update(new)
            skills = "  ".join(f"{name} {value:.2f}" for name, value in numbers.items() if name != "loss")
            shown = f"loss {new['loss']:.3f}  {skills}"
            if len(new) > 1 and not console.is_terminal:
                console.print(f"step {step}/{total}  {shown}", highlight=False)
            progress.update(task, completed=step, total=total, shown=shown)

        pretrain(config, output, show)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({"model": str(output), "seconds": seconds, "numbers": numbers}))
        return
    console.print(f"{output} holds the model, its tokenizer and recipe.json ({seconds:.0f} s).", highlight=False)
    use = command("fit", "--method", "METHOD", f"lm.path={output}")
    console.print(f"Use it with any experiment: {use}", highlight=False, markup=False, soft_wrap=True)
