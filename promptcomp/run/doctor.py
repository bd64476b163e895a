"""`promptcomp doctor`: can this machine run the program?"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.run.quiet import quiet

_MINIMUM_DISK_GIB = 2.0


class Finding(BaseModel):
    """One checked fact."""

    subject: str
    ok: bool
    detail: str


def report() -> list[Finding]:
    """Every check; a check that fails says what to do."""
    checks: list[Callable[[], Finding]] = [_python, _packages, _devices, _memory, _disk, _writable, _builtin, _step]
    with quiet():
        return [check() for check in checks]


def print_report(console: Console, as_json: bool) -> bool:
    """Print the checks; returns whether all passed."""
    findings = report()
    if as_json:
        print(json.dumps([finding.model_dump() for finding in findings]))
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("", "check", "found"):
            table.add_column(name)
        for finding in findings:
            mark = Text("ok", style="green") if finding.ok else Text("!!", style="red")
            table.add_row(mark, finding.subject, finding.detail)
        console.print(table)
    return all(finding.ok for finding in findings)


def _python() -> Finding:
    return Finding(subject="python", ok=True, detail=f"{platform.python_version()} on {platform.platform()}")


def _packages() -> Finding:
    from promptcomp.run.run_directory import environment

    packages = environment()["packages"]
    missing = [name for name, version in packages.items() if version is None]
    detail = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if missing:
        detail = f"missing: {', '.join(missing)}; reinstall promptcomp with pip"
    return Finding(subject="packages", ok=not missing, detail=detail)


def _devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f"{os.cpu_count()} CPU cores, torch uses {torch.get_num_threads()} threads"
    return Finding(subject="devices", ok=True, detail=f"{', '.join(gpus) or 'no GPU'}; {cpu}")


def _memory() -> Finding:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return Finding(subject="memory", ok=free > 1, detail=f"{free:.1f} GiB free (the toy world needs about 1)")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = free > _MINIMUM_DISK_GIB
    return Finding(subject="disk", ok=ok, detail=f"{free:.1f} GiB free in {Path.cwd()}" + ("" if ok else "; make room"))


def _writable() -> Finding:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        return Finding(
            subject="run directories", ok=False, detail=f"cannot write here: {error.strerror}; set output_dir"
        )
    return Finding(subject="run directories", ok=True, detail="can be written here")


def _builtin() -> Finding:
    from promptcomp.config import ConfigError
    from promptcomp.language_model import LanguageModel, LanguageModelConfig

    names = ("toy_decoder", "toy_t5")
    try:
        models = {name: LanguageModel.from_config(LanguageModelConfig(path=f"builtin:{name}")) for name in names}
    except (ConfigError, OSError) as error:
        return Finding(subject="built-in models", ok=False, detail=f"{error}; reinstall the package")
    sizes = [f"{name} {sum(p.numel() for p in model.parameters()):,} parameters" for name, model in models.items()]
    return Finding(subject="built-in models", ok=True, detail=", ".join(sizes))


def _step() -> Finding:
    import torch

    layer = torch.nn.Linear(8, 8)
    loss = layer(torch.ones(2, 8)).pow(2).mean()
    loss.backward()
    ok = layer.weight.grad is not None and bool(torch.isfinite(loss))
    return Finding(subject="training step", ok=ok, detail="a gradient was computed" if ok else "torch does not work")
