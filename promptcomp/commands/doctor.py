"""`promptcomp doctor`: can this machine run the program?"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import typer

import promptcomp
from promptcomp import __version__
from promptcomp.commands.common import JsonOption, tell
from promptcomp.errors import ConfigError, first_line

_MEMORY = Path("/proc/meminfo")
_MINIMUM_DISK_GIB = 2.0


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, extras, devices, disk, built-in models, a training step; for reports of bugs."""
    from rich.text import Text

    from promptcomp.terminal import plain_table

    found = [*_machine(), *_with_torch()]
    marks = {True: Text("ok", style="green"), False: Text("!!", style="red")}
    table = plain_table(("", "check", "found"), [(marks[ok], subject, detail) for subject, ok, detail in found])
    tell([dict(zip(("subject", "ok", "detail"), each, strict=True)) for each in found], table, as_json)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(1)


def _machine() -> Iterator[tuple[str, bool, str]]:
    """What is checked, whether it is as it should be, and what was found or what to do; without torch."""
    from promptcomp.files import cache_folder
    from promptcomp.run.run_directory import packages

    yield "promptcomp", True, f"{__version__} in {Path(promptcomp.__file__).parent}"
    yield "python", True, f"{platform.python_version()} on {platform.platform()}"
    versions = packages()
    missing = [name for name, version in versions.items() if version is None]
    here = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "packages", not missing, f"missing: {', '.join(missing)}; reinstall promptcomp with pip" if missing else here
    extras = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in _extras().items())
    yield "extras", True, extras or "unknown: promptcomp runs from a checkout that pip did not install"
    for subject, folder in (("disk", Path.cwd()), ("cache", cache_folder())):
        place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        disk = shutil.disk_usage(place).free / 2**30
        has_room = disk > _MINIMUM_DISK_GIB
        yield subject, has_room, f"{disk:.1f} GiB free in {folder}" + ("" if has_room else "; free space")
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            yield "run directories", True, "can be written here"
    except OSError as error:
        yield "run directories", False, f"cannot write here: {error.strerror}; set output_dir"
    memory = _free_memory()
    told = "unknown" if memory is None else f"{memory:.1f} GiB free (the toy world needs about 1)"
    yield "memory", memory is None or memory > 1, told


def _free_memory() -> float | None:
    """GiB that a new process can have, what the system gives back of its cache of files included; None: not told."""
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
        kilobytes = int(found[1]) if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**10
    except (ValueError, OSError):  # a system that does not tell
        return None
    return kilobytes / 2**20


def _with_torch() -> Iterator[tuple[str, bool, str]]:
    """The same for what needs torch; where torch cannot be imported, that alone."""
    try:
        import torch

        from promptcomp.evaluation.formatting import many
        from promptcomp.language_model import LanguageModel, LanguageModelConfig
        from promptcomp.language_model.loading import multiplies_bfloat16
        from promptcomp.run.opening import quiet
    except (ImportError, OSError) as error:  # a library of torch that is not found is an OSError
        yield "torch", False, f"{first_line(error)}; reinstall promptcomp with pip"
        return
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    fast = ", bfloat16 is faster than float32" if multiplies_bfloat16() else ""
    cpu = f"{many(os.cpu_count() or 1, 'CPU core')}, torch uses {many(torch.get_num_threads(), 'thread')}{fast}"
    yield "devices", True, f"{', '.join(gpus) or 'no GPU'}; {cpu}"
    names = ("toy_decoder", "toy_t5")
    try:
        with quiet():
            models = {name: LanguageModel.from_config(LanguageModelConfig(path=f"builtin:{name}")) for name in names}
    except (ConfigError, OSError) as error:
        yield "built-in models", False, f"{error}; reinstall the package"
    else:
        sizes = [f"{name} {sum(p.numel() for p in model.parameters()):,} parameters" for name, model in models.items()]
        yield "built-in models", True, ", ".join(sizes)
    layer = torch.nn.Linear(8, 8)
    loss = layer(torch.ones(2, 8)).pow(2).mean()
    loss.backward()
    works = layer.weight.grad is not None and bool(torch.isfinite(loss))
    yield "training step", works, "a gradient was computed" if works else "torch does not work"


def _extras() -> dict[str, bool]:
    """The extras of pyproject.toml but `test`, and whether all packages of each are here; nothing without metadata."""
    try:
        lines = metadata.requires("promptcomp") or []
    except metadata.PackageNotFoundError:
        return {}
    pairs = [re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line) for line in lines]
    found: dict[str, bool] = {}
    for package, extra in (pair.groups() for pair in pairs if pair):
        if extra != "test":
            found[extra] = found.get(extra, True) and any(metadata.distributions(name=package))
    return found
