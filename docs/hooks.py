"""What the site has beside the files of docs/: the first page, the reference, recorded figures, notebooks to download.

mkdocs calls the functions that are named on_...; nothing here needs torch.
"""

from __future__ import annotations

import json
import posixpath
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify
from typer.main import get_command

import promptcomp
from promptcomp import reference
from promptcomp.cli import app

ROOT = Path(__file__).parents[1]
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "CHANGELOG.md": "reference/changes.md",
    "promptcomp/assets/glossary.md": "reference/glossary.md",
}
"""Files beside docs/ that are pages of the site."""
FENCE = re.compile(r"^```python\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors are those that forges make of headings, so that the same links hold in both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and each tutorial as a notebook."""
    made = {there: _moved((ROOT / here).read_text(encoding="utf-8"), there) for here, there in FROM_ROOT.items()}
    made["reference/commands.md"] = "\n".join(["# Every command\n", *_commands(get_command(app), "promptcomp")])
    made["reference/keys.md"] = _escaped(reference.markdown().replace("# Keys", "# Every key", 1))
    made["reference/python.md"] = _python()
    made["reference/recorded.md"] = "\n".join(_recorded())
    for page in list(files.documentation_pages()):
        if page.src_uri.startswith("tutorials/"):
            made[page.src_uri.replace(".md", ".ipynb")] = notebook(page.content_string)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lists as forges read them; no links to what the site has not; a notebook's own file."""
    here = page.file.src_uri
    if here.startswith("tutorials/"):
        name = posixpath.basename(here).replace(".md", ".ipynb")
        markdown += f"\n[This page as a notebook]({name}), for Jupyter with promptcomp installed.\n"
    for name, there in FROM_ROOT.items():
        moved = posixpath.relpath(there, posixpath.dirname(here) or ".")
        markdown = re.sub(rf"\((?:\.\./)+{re.escape(name)}", f"({moved}", markdown)
    markdown = re.sub(r"\[([^\]]*)\]\((?:\.\./)+promptcomp/[^)]*\)", r"\1", markdown)
    if here == "results.md":
        markdown = _dated(markdown)
    return "\n".join(_lists(markdown.split("\n")))


def _dated(markdown: str) -> str:
    """The page of results with date and commit below each table that is kept as data."""
    for file, found, (date, commit) in _figures():
        table, last, below = markdown.partition(_row(found["rows"][-1].values()) + "\n")
        link = f"reference/recorded.md#{file.stem.replace('_', '-')}"
        note = f"\n<small>Recorded on {date} in {commit}; [as data]({link}).</small>\n"
        markdown = table + last + (note if last else "") + below
    return markdown


def _row(cells: Iterable[Any]) -> str:
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)


def notebook(text: str) -> str:
    """A page as a notebook: its Python blocks are cells, what stands between them is text."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(FENCE.split(text)):
        code: dict[str, Any] = {"execution_count": None, "outputs": []} if number % 2 else {}
        kind = "code" if number % 2 else "markdown"
        if part.strip():
            source = part.strip("\n").splitlines(keepends=True)
            cells.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **code})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def _moved(text: str, there: str) -> str:
    """A page of the root with its links as they are from its place on the site; without those to other files."""
    folder = posixpath.dirname(there) or "."

    def link(found: re.Match[str]) -> str:
        shown, target = found.groups()
        name, mark, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return found[0]
        if name in FROM_ROOT:
            return f"[{shown}]({posixpath.relpath(FROM_ROOT[name], folder)}{mark}{anchor})"
        if name.startswith("docs/"):
            return f"[{shown}]({posixpath.relpath(name.removeprefix('docs/'), folder)}{mark}{anchor})"
        return shown

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def _lists(lines: list[str]) -> Iterator[str]:
    """Lists as Python-Markdown wants them: an empty line in front, and four spaces for what belongs to an item."""
    widths: list[int] = []
    fenced, before = False, ""
    for line in lines:
        item = re.match(r"( *)([*-]|\d+\.)( +)\S", line)
        indent = len(line) - len(line.lstrip())
        if not fenced and line.strip():
            while widths and indent < sum(widths) and (item or not before.strip()):
                widths.pop()
        depth = sum(widths)
        begins = item is not None and not fenced and indent - depth < 4 and (indent == depth or bool(widths))
        if begins and before.strip() and not widths:
            yield ""
        inside = min(depth, indent)
        yield " " * (4 * len(widths) if inside == depth else indent) + line[inside:] if line.strip() else line
        if begins and item is not None:
            widths.append(len(item[2]) + len(item[3]))
        if line.lstrip().startswith("```"):
            fenced = not fenced
        before = line


def _commands(command: Any, name: str) -> Iterator[str]:
    """A command and those below it: what it does, how it is called, its arguments and options."""
    context = command.make_context(name, [], resilient_parsing=True)
    subcommands = {each: found for each, found in getattr(command, "commands", {}).items() if not found.hidden}
    yield f"## `{name}`\n"
    yield f"{_plain(command.help or '')}\n"
    if not subcommands:
        yield f"    {name} {' '.join(command.collect_usage_pieces(context))}\n"
    records = [found for each in command.params if (found := each.get_help_record(context))]
    shown = [record for record in records if record[0] not in ("--install-completion", "--show-completion", "--help")]
    if shown:
        yield "| argument or option | |\n|---|---|"
        yield "\n".join(f"| `{_cell(words)}` | {_cell(_plain(text))} |" for words, text in shown) + "\n"
    for each, found in subcommands.items():
        yield from _commands(found, f"{name} {each}")


def _plain(text: str) -> str:
    return _escaped(text.replace("\b", "").replace("*", "\\*"))


def _escaped(text: str) -> str:
    """Without HTML; what stands in backticks is text anyway."""
    return re.sub(r"`[^`\n]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _python() -> str:
    """The public names, in the order of their list, where they are defined."""
    lines = ["# Python", "", "What `import promptcomp` offers; [Use it from Python](../python.md) has examples.", ""]
    names = (f"::: promptcomp.{name}\n" for name in promptcomp.__all__ if name != "__version__")
    return "\n".join([*lines, *names])


def _figures() -> Iterator[tuple[Path, dict[str, Any], list[str]]]:
    """Each file of figures with its date and commit: those that it names where the figures are older than the file."""
    for file in sorted((ROOT / "docs").glob("*/*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        kept = list(found.get("recorded", {}).values())
        if not kept:
            words = ["git", "log", "-1", "--format=%cs %h", "--", str(file)]
            kept = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
        date, commit = kept or ("not", "committed")
        yield file, found, [date, f"`{commit}`"]


def _recorded() -> Iterator[str]:
    """A table for each file of figures, with the command, and the commit that recorded it."""
    yield "# Recorded figures\n"
    yield "Figures that are kept as data, each with its command, its date and its commit."
    yield "[What was measured](../results.md) has all results in words, with what is not known.\n"
    for file, found, kept in _figures():
        rows = found["rows"]
        yield f"## {file.stem.replace('_', ' ')}\n"
        for key, value in found.items():
            if key not in ("section", "command", "recorded") and not isinstance(value, list):
                text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
                yield f"* {key.replace('_', ' ')}: {text}"
        yield f"* described in [results](../{found['section'].removeprefix('docs/')})\n"
        yield f"```bash\n{found['command']}\n```\n"
        keys = list(rows[0])
        yield _row([*(key.replace("_", " ") for key in keys), "date", "commit"])
        yield "|---" * (len(keys) + 2) + "|"
        for row in rows:
            yield _row([*(row[key] for key in keys), *kept])
        yield ""
