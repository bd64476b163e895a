"""`promptcomp doctor`: can this machine run the program?"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import typer

from promptcomp.commands.common import JsonOption, console_for
from promptcomp.errors import ConfigError

_MINIMUM_DISK_GIB = 2.0


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, devices, disk, built-in models, a tiny training step."""
    from rich.table import Table
    from rich.text import Text

    from promptcomp.run.opening import quiet

    with quiet():
        found = [(subject, *check()) for subject, check in _CHECKS.items()]
    if as_json:
        print(json.dumps([dict(zip(("subject", "ok", "detail"), each, strict=True)) for each in found]))
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("", "check", "found"):
            table.add_column(name)
        for subject, ok, detail in found:
            table.add_row(Text("ok", style="green") if ok else Text("!!", style="red"), subject, detail)
        console_for(False).print(table)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(1)


def _python() -> tuple[bool, str]:
    return True, f"{platform.python_version()} on {platform.platform()}"


def _packages() -> tuple[bool, str]:
    from promptcomp.run.run_directory import packages

    found = packages()
    if missing := [name for name, version in found.items() if version is None]:
        return False, f"missing: {', '.join(missing)}; reinstall promptcomp with pip"
    return True, ", ".join(f"{name} {version}" for name, version in found.items())


def _devices() -> tuple[bool, str]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f"{os.cpu_count()} CPU cores, torch uses {torch.get_num_threads()} threads"
    return True, f"{', '.join(gpus) or 'no GPU'}; {cpu}"


def _memory() -> tuple[bool, str]:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return free > 1, f"{free:.1f} GiB free (the toy world needs about 1)"


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = free > _MINIMUM_DISK_GIB
    return ok, f"{free:.1f} GiB free in {Path.cwd()}" + ("" if ok else "; make room")


def _writable() -> tuple[bool, str]:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            return True, "can be written here"
    except OSError as error:
        return False, f"cannot write here: {error.strerror}; set output_dir"


def _builtin() -> tuple[bool, str]:
    from promptcomp.language_model import LanguageModel, LanguageModelConfig

    names = ("toy_decoder", "toy_t5")
    try:
        models = {name: LanguageModel.from_config(LanguageModelConfig(path=f"builtin:{name}")) for name in names}
    except (ConfigError, OSError) as error:
        return False, f"{error}; reinstall the package"
    sizes = [f"{name} {sum(p.numel() for p in model.parameters()):,} parameters" for name, model in models.items()]
    return True, ", ".join(sizes)


def _step() -> tuple[bool, str]:
    import torch

    layer = torch.nn.Linear(8, 8)
    loss = layer(torch.ones(2, 8)).pow(2).mean()
    loss.backward()
    ok = layer.weight.grad is not None and bool(torch.isfinite(loss))
    return ok, "a gradient was computed" if ok else "torch does not work"


_CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "python": _python,
    "packages": _packages,
    "devices": _devices,
    "memory": _memory,
    "disk": _disk,
    "run directories": _writable,
    "built-in models": _builtin,
    "training step": _step,
}
"""What is checked: whether it is as it should be, and what was found or what to do."""
