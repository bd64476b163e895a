"""`promptcomp doctor`: can this machine run the program?"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from promptcomp.commands.common import JsonOption, tell
from promptcomp.errors import ConfigError

_MINIMUM_DISK_GIB = 2.0


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, devices, disk, built-in models, a tiny training step."""
    from rich.text import Text

    from promptcomp.run.opening import quiet
    from promptcomp.terminal import plain_table

    with quiet():
        found = list(_checks())
    marks = {True: Text("ok", style="green"), False: Text("!!", style="red")}
    table = plain_table(("", "check", "found"), [(marks[ok], subject, detail) for subject, ok, detail in found])
    tell([dict(zip(("subject", "ok", "detail"), each, strict=True)) for each in found], table, as_json)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(1)


def _checks() -> Iterator[tuple[str, bool, str]]:
    """What is checked, whether it is as it should be, and what was found or what to do."""
    import torch

    from promptcomp.language_model import LanguageModel, LanguageModelConfig
    from promptcomp.run.run_directory import packages

    yield "python", True, f"{platform.python_version()} on {platform.platform()}"
    versions = packages()
    missing = [name for name, version in versions.items() if version is None]
    here = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "packages", not missing, f"missing: {', '.join(missing)}; reinstall promptcomp with pip" if missing else here
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f"{os.cpu_count()} CPU cores, torch uses {torch.get_num_threads()} threads"
    yield "devices", True, f"{', '.join(gpus) or 'no GPU'}; {cpu}"
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield "memory", memory > 1, f"{memory:.1f} GiB free (the toy world needs about 1)"
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    has_room = disk > _MINIMUM_DISK_GIB
    yield "disk", has_room, f"{disk:.1f} GiB free in {Path.cwd()}" + ("" if has_room else "; free space")
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            yield "run directories", True, "can be written here"
    except OSError as error:
        yield "run directories", False, f"cannot write here: {error.strerror}; set output_dir"
    names = ("toy_decoder", "toy_t5")
    try:
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
