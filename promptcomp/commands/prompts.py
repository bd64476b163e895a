"""`promptcomp compress`, `inspect`, `generate` and `serve`: compressed prompts as files, and what answers with them."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from promptcomp.checkpoints.hub import downloaded, prompt_file
from promptcomp.commands import completing
from promptcomp.commands.common import JsonOption, console_for, loading, refuse_ignored, show, takes, tell
from promptcomp.errors import ConfigError, command
from promptcomp.files import check_file, check_output
from promptcomp.serving import ServeOptions

if TYPE_CHECKING:
    from promptcomp.experiment import Experiment
    from promptcomp.prompts.compressing import Compressor
    from promptcomp.prompts.sources import PromptSource, Query
    from promptcomp.rivals import Rival

DeviceOption = Annotated[str, Option("--device", help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]
TextOption = Annotated[str | None, Option("--text", help="The prompt.")]
FileOption = Annotated[Path | None, Option("--file", help="A UTF-8 file with the prompt.")]
RevisionOption = Annotated[str | None, Option(help="Of a repository: branch, tag or commit.")]
RowsOption = Annotated[
    Path | None,
    Option("--demonstrations", help="JSON lines with input and output, formatted as in the run's training."),
]
_SHOWN_HASH, _SHOWN_TEXT = 16, 300


def compress(
    run: Annotated[
        Path,
        Argument(
            help="A run, what 'export --to tensors' wrote, or its repository: user/name.",
            autocompletion=completing.run_folders,
        ),
    ],
    output: Annotated[Path, Option("--output", "-o", help="The file to write (safetensors).")],
    text: TextOption = None,
    file: FileOption = None,
    stdin: Annotated[bool, Option("--stdin", help="Read the prompt from standard input.")] = False,
    demonstrations: RowsOption = None,
    task: Annotated[str | None, Option(help="Task whose prompt to take (prompt tuning by task).")] = None,
    slots: Annotated[int | None, Option(min=1, help="One of the run's method.budgets; default: the largest.")] = None,
    rival: Annotated[
        str | None,
        Option(help="Instead of the run's method a rival with the run's LM: evict, '{name: evict, bytes: 1/8}', ..."),
    ] = None,
    model: Annotated[str | None, Option(help="Where the LM is now; default: where the run says.")] = None,
    revision: RevisionOption = None,
    keep_text: Annotated[bool, Option("--keep-text", help="Keep the prompt's text in the file.")] = False,
    force: Annotated[bool, Option("--force", help="Replace the file if it exists.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compress a prompt with a trained run into a file that 'generate' reads."""
    given = [value for value in (text, file, demonstrations, stdin or None) if value is not None]
    if len(given) > 1:
        raise ConfigError("give one of --text, --file, --stdin and --demonstrations")
    asked = None if rival is None else _rival(rival)
    sized = asked and (asked.model_fields_set & {"slots", "bytes"} or "slots" not in type(asked).model_fields)
    if asked is not None and sized and slots is not None:
        raise ConfigError(f"--slots {slots}: the rival {asked.label} has a size of its own; leave one of them out")
    check_output(output, force)
    run = downloaded(run, revision)
    method = _checked(run, file, demonstrations, model=model).method
    if method.reads_prompt and not given:
        raise ConfigError("no prompt; give one with --text, --file, --stdin or --demonstrations")
    if given and asked is None and not method.reads_prompt:
        raise ConfigError(f"{run}: its method ({method.name}) reads no prompt; give none")
    with loading(console_for(True), "the model"):
        from promptcomp.prompts.compressing import Compressor

        compressor = Compressor.load(run, model=model, device=device)
    source = _source(compressor, text, file, demonstrations, stdin)
    done = compressor.compression(source, task=task, slots=slots, keep_text=keep_text, rival=asked)
    done.prompt.save(output, force=force)
    from promptcomp.evaluation.formatting import bytes_text

    info, size = done.prompt.info, output.stat().st_size
    ratio = info.source_tokens / max(info.slots, 1)
    found = {
        "file": str(output),
        "tokens": info.source_tokens,
        "slots": info.slots,
        "ratio": ratio,
        "file_bytes": size,
        "kv_bytes": done.kv_bytes,
        "full_kv_bytes": done.full_kv_bytes,
        "milliseconds": done.milliseconds,
    }
    kept = f"{bytes_text(done.kv_bytes)} instead of {bytes_text(done.full_kv_bytes)}"
    lines = (
        f"{output}: {info.lengths} ({ratio:.1f}x) in {done.milliseconds:.0f} ms",
        f"file {bytes_text(size)}, in the LM's cache {kept}",
        f"ask it: {command('generate', '--prompt', output, 'QUERY')}",
    )
    tell(found, "\n".join(lines), as_json)


def _checked(run: Path, *prompts: Path | None, model: str | None = None) -> Experiment:
    """The configuration of what compresses; a mistake, or a missing prompt, is told before torch is imported."""
    from promptcomp.checkpoints.places import TENSORS
    from promptcomp.run.configured import check_lm, exported_experiment, trained_experiment, with_lm

    for path in prompts:
        if path is not None:
            check_file(path, "prompt")
    is_export = (run / TENSORS).is_file()
    experiment = with_lm(exported_experiment(run) if is_export else trained_experiment(run), run, model)
    check_lm(experiment, run)
    return experiment


def _rival(word: str) -> Rival:
    """The rival of a name or of a section.

    Raises:
        ConfigError: it is none, or none that a prompt alone can have, or a folder that it reads is not there.
    """
    from promptcomp.config import build, parse_value
    from promptcomp.rivals import RIVALS

    value = parse_value(word, word)
    tree = value if isinstance(value, dict) else {"name": value}
    alone = {each.model_fields["name"].default: each for each in RIVALS if not each.is_control}
    alone = {name: each for name, each in alone.items() if not each.needs_demonstrations}
    if not isinstance(name := tree.get("name"), str) or name not in alone:
        raise ConfigError(f"--rival {name!r}: no rival that a prompt alone can have; choose {', '.join(alone)}")
    found: Rival = build(alone[name], tree, "--rival")
    found.check_places()
    return found


def _source(
    compressor: Compressor, text: str | None, file: Path | None, demonstrations: Path | None, stdin: bool = False
) -> PromptSource:
    from promptcomp.prompts.sources import PromptSource, prompt_text, read_source

    if stdin:
        raw = sys.stdin.buffer.read()
        return PromptSource(prompt_text(raw, "standard input", keep_last_line_break=compressor.is_icl))
    return read_source(text=text, file=file, demonstrations=demonstrations, is_icl=compressor.is_icl)


def inspect(
    file: Annotated[
        Path, Argument(help="A compressed prompt, what 'export --to tensors' made of it, or its user/name.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Verify a compressed prompt and show its metadata."""
    from rich.table import Column, Table

    file = prompt_file(file)
    check_file(file, "memory file")
    from promptcomp.evaluation.formatting import bytes_text
    from promptcomp.memory import memory_tensors
    from promptcomp.prompts.artifact import read_prompt

    memory, info = read_prompt(file)
    kind, tensors, size = type(memory).__name__, memory_tensors(memory), file.stat().st_size
    if as_json:
        found = {"file": str(file), "file_bytes": size, "verified": True, "kind": kind}
        found |= {"tensor_bytes": sum(t.numel() * t.element_size() for t in tensors.values())}
        print(json.dumps({**found, "num_tensors": len(tensors), **info.model_dump(mode="json")}))
        return
    rows = {
        "file": f"{file} ({bytes_text(size)}, hash verified)",
        "kind": f"{kind}, {info.dtype}, {len(tensors)} tensors",
        "made by": f"{info.method}{f' ({info.run})' if info.run else ''} on {info.created}, promptcomp {info.version}",
        "prompt": f"{info.lengths} ({info.source_tokens / max(info.slots, 1):.1f}x)",
        "read by": f"{info.lm.path} as trained in {info.run}" if info.lm_is_trained else info.lm.path,
        "weights": info.lm_hash[:_SHOWN_HASH],
        "tokenizer": info.tokenizer_hash[:_SHOWN_HASH],
        "next position": "-" if info.next_position is None else str(info.next_position),
        "query": repr(info.query),
        "empty query": repr(info.empty_query),
        "stop tokens": ", ".join(map(str, info.stop_ids)) or "none",
        "source hash": info.source_sha256[:_SHOWN_HASH],
        "text": "not kept" if info.text is None else repr(info.text[:_SHOWN_TEXT]),
        "settings": ", ".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in info.settings.items()
        ),
    }
    if info.cost:
        rows["cost"] = ", ".join(f"{key}={value:.4g}" for key, value in info.cost.items())
    table = Table("", Column(overflow="fold"), show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    console = console_for(False)
    console.print(table, highlight=False)
    if info.held_out:
        from promptcomp.report import print_held_out

        print_held_out(info.held_out, console)


def generate(
    context: typer.Context,
    query: Annotated[str | None, Argument(help="One query; its answer is streamed.")] = None,
    prompt: Annotated[
        Path | None,
        Option("--prompt", "-p", help="A compressed prompt, what 'export --to tensors' made of it, or its user/name."),
    ] = None,
    queries: Annotated[
        Path | None, Option(help="Queries: JSON lines with input (and id), or one on each line. Default: stdin.")
    ] = None,
    model: Annotated[str | None, Option(help="Run directory or LM; default: the one that the prompt names.")] = None,
    revision: RevisionOption = None,
    text: Annotated[str | None, Option(help="An uncompressed prompt, for comparison; needs --model RUN.")] = None,
    file: Annotated[Path | None, Option(help="As --text, from a UTF-8 file.")] = None,
    demonstrations: RowsOption = None,
    max_new_tokens: Annotated[int | None, Option(min=1, help="Default: 128, or what the LM's window leaves.")] = None,
    temperature: Annotated[
        float | None, Option(min=0, help="Temperature of sampling; default: 0, the most likely token.")
    ] = None,
    top_p: Annotated[float, Option(help="Sample from the most likely tokens with this total probability.")] = 1.0,
    seed: Annotated[int, Option(help="Seed of the sampling.")] = 0,
    beams: Annotated[int, Option(min=1, help="More than 1: beam search.")] = 1,
    batch_size: Annotated[int, Option(min=1, help="Queries answered at a time.")] = 16,
    output: Annotated[
        Path | None, Option("--output", "-o", help="File for the answers (JSON lines); default: stdout.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace the output file if it exists.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer queries with a compressed prompt (or, for comparison, with an uncompressed one)."""
    whole = [value for value in (text, file, demonstrations) if value is not None]
    if len(whole) + (prompt is not None) != 1:
        raise ConfigError(
            "give a compressed prompt with --prompt, or an uncompressed one with --text, --file or --demonstrations"
        )
    if temperature is None:
        refuse_ignored(context, "is for tokens that are drawn; give --temperature too", "--top-p", "--seed")
    if query is not None and queries is not None:
        raise ConfigError("give a query or --queries, not both")
    if output is not None:
        check_output(output, force)
    if revision is not None and prompt is None:
        raise ConfigError("--revision goes with --prompt user/name")
    if prompt is not None:
        prompt = prompt_file(prompt, revision)
        check_file(prompt, "memory file")
    elif model is None or not os.path.isfile(Path(model) / "config.yaml"):
        raise ConfigError("an uncompressed prompt needs --model RUN, a run directory, which has the format of prompts")
    else:
        _checked(Path(model), file, demonstrations)
    asked = _queries(query, queries)
    with loading(console_for(True), "the model"):
        from promptcomp.prompts.compressing import Compressor
        from promptcomp.prompts.prompt_files import AnswerSettings, load_prompt

        settings = AnswerSettings(max_new_tokens, temperature or 0.0, top_p, seed, beams, batch_size)
        if prompt is None:
            compressor = Compressor.load(str(model), device=device)
            memory, reader = compressor.uncompressed(_source(compressor, text, file, demonstrations)), compressor.reader
        else:
            stored = load_prompt(prompt, model=model, device=device)
            memory, reader = stored.memory, stored.reader
    if query is not None and output is None and not as_json:
        for _ in reader.answers(memory, [query], settings, _show):
            print()
        return
    answers = reader.answers(memory, [each.text for each in asked], settings)
    records = (
        {**({} if each.id is None else {"id": each.id}), "input": each.text, "output": answer.text, "ids": answer.ids}
        for each, answer in zip(asked, answers, strict=True)
    )
    if output is not None:
        from promptcomp.files import replacing

        # The file has its name only when all of them are there.
        with replacing(output) as partial_file, partial_file.open("w", encoding="utf-8") as lines:
            for record in records:
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                lines.flush()
        found = {"output": str(output), "answers": len(asked)}
        show(json.dumps(found) if as_json else f"{len(asked)} answers in {output}")
    elif as_json:
        print(json.dumps({"answers": list(records)}))
    else:
        for record in records:
            show(json.dumps(record, ensure_ascii=False))


def _show(piece: str) -> None:
    if sys.stdout.isatty():
        show(piece, end="")
    else:
        print(piece, end="", flush=True)


def _queries(query: str | None, file: Path | None) -> list[Query]:
    from promptcomp.prompts.sources import Query, read_queries, text_queries

    if query is not None:
        return [Query(query)]
    if file is not None:
        return read_queries(file)
    if sys.stdin.isatty():
        raise ConfigError("no query; give one as an argument, name a file with --queries, or pipe lines in")
    return text_queries(sys.stdin.buffer.read(), "standard input")


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
