"""`promptcomp serve`: compressed prompts behind an OpenAI-compatible server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from promptcomp.commands.common import JsonOption, console_for, refuse_ignored, takes
from promptcomp.commands.prompts import DeviceOption
from promptcomp.errors import ConfigError
from promptcomp.serving import ServeOptions


@takes(options=ServeOptions)
def serve(
    context: typer.Context,
    folder: Annotated[Path, Argument(help="A folder of compressed prompts (NAME.safetensors).")],
    lm: Annotated[str | None, Option(help="Run directory or LM; default: the one that the prompts name.")] = None,
    name: Annotated[str | None, Option(help="Name of the LM for requests; default: the last part of its path.")] = None,
    dtype: Annotated[str | None, Option(help="Of the LM's weights; default: as the prompts have it.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    *,
    options: ServeOptions,
) -> None:
    """Answer requests of OpenAI's protocol, behind compressed prompts (model LM:PROMPT) or none (model LM)."""
    if options.api_key_file is not None:
        refuse_ignored(context, "and --api-key-file both name the key; give one of them", "--api-key-env")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; make it, and compress prompts into it")
    if name is not None and ":" in name:
        raise ConfigError(f"--name {name!r}: a colon stands between the names of LM and prompt; leave it out")
    if name is not None and not (name.strip() and name.isprintable()):
        raise ConfigError(f"--name {name!r}: is no name; leave it out for the last part of the LM's path")
    options.api_key()
    if missing := [
        each for each in ("starlette", "uvicorn", "prometheus_client") if not importlib.util.find_spec(each)
    ]:
        raise ConfigError(f"serving needs {missing[0]}, which is not installed; pip install 'promptcomp[serve]'")
    from promptcomp.serving.server import run_server

    run_server(folder, lm, options, console_for(True), name=name, dtype=dtype, device=device, as_json=as_json)
