"""`promptcomp export` and `push`: runs and compressed prompts for other programs and for a hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from promptcomp.commands.common import JsonOption, console_for, show, tell
from promptcomp.errors import ConfigError
from promptcomp.files import check_empty
from promptcomp.plain import say

To = Literal["hf", "peft", "tensors", "transformers", "vllm"]
_OF_PROMPTS = ("tensors", "peft", "transformers", "vllm")


def export(
    what: Annotated[
        Path, Argument(help="A run directory made by 'promptcomp fit', or the file of a compressed prompt.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="A new folder.")],
    to: Annotated[
        To | None,
        Option(
            help="Of a run: hf (a transformers folder), peft (adapters, soft prompts) or tensors; default: what suits "
            "the method. Of a prompt: tensors (the file itself), peft, transformers (a cache) or vllm (requests with "
            "embeddings)."
        ),
    ] = None,
    model: Annotated[str | None, Option(help="Of a prompt: a run or LM instead of the one that it names.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's trained parts or a compressed prompt for another program, with a README on how to load it."""
    is_prompt = what.is_file() or what.suffix == ".safetensors"
    if is_prompt and to not in _OF_PROMPTS:
        raise ConfigError(
            f"{what}: is a compressed prompt; give --to {', '.join(_OF_PROMPTS[:-1])} or {_OF_PROMPTS[-1]}"
        )
    if is_prompt:
        from promptcomp.files import check_file

        check_file(what, "memory file")
        check_empty(output)
        from promptcomp.exports.prompt_export import export_prompt

        found = export_prompt(what, output, str(to), model)
    else:
        if to == "transformers" or to == "vllm" or model is not None:
            option = "--model" if model is not None else f"--to {to}"
            raise ConfigError(f"{what}: {option} goes with a compressed prompt; `promptcomp compress` makes its file")
        from promptcomp.run.configured import trained_experiment

        trained_experiment(what).method.export_format(to)
        check_empty(output)
        from promptcomp.exports.export import export as write

        found = write(what, output, to)
    lines = [f"written to {found.folder} ({found.format}): {', '.join(found.files)}", *found.notes]
    tell(found.model_dump(mode="json"), "\n".join(lines), as_json)


def push(
    folder: Annotated[Path, Argument(help="What 'promptcomp export' has written.")],
    name: Annotated[str, Argument(help="The repository: user/name.")],
    private: Annotated[
        bool, Option("--private", help="Make it a private repository; a public one is refused.")
    ] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Upload without asking for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload an export to a repository of the Hugging Face hub (HF_ENDPOINT: another), with the token of `hf auth`."""
    from promptcomp.checkpoints.hub import check_name, upload

    check_name(name)
    from promptcomp.exports.card import files_of

    files = files_of(folder)
    from promptcomp.evaluation.formatting import bytes_text

    size = sum((folder / file).stat().st_size for file in files)
    text = f"{len(files)} files, {bytes_text(size)}, to {name}: {', '.join(files)}"
    if not yes:
        say(console_for(as_json), text)
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask for confirmation; give --yes to upload")
        if not typer.confirm("Upload?", err=True):
            show("nothing was uploaded", file=sys.stderr)
            raise typer.Exit(0)
    address, others = upload(folder, files, name, private=private)
    found = {"repository": name, "files": files, "bytes": size, "commit": address, "other_files": others}
    stay = f"\nalso in it, from before: {', '.join(others)}" if others else ""
    tell(found, f"uploaded {text}{stay}\n{address}", as_json)
