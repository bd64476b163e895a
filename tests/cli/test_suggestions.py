"""Commands that messages suggest can be given as they stand: the program's own parser reads every one."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import promptcomp
from promptcomp.cli import app
from promptcomp.errors import command
from tests.cli.conftest import Run

ROOT = Path(promptcomp.__file__).parent
PROGRAM = get_command(app)
NAMES = sorted(PROGRAM.commands)  # type: ignore[attr-defined]
QUOTED = re.compile(rf"(['`])(promptcomp (?:{'|'.join(NAMES)})\b[^'`]*)\1|: (promptcomp (?:{'|'.join(NAMES)})\b.*)$")
HOLE = "{}"


def called() -> Iterator[tuple[str, list[str]]]:
    """Every call of `command(...)`: where it is, and its words; what is not known before the run is a placeholder."""
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
                words = [w.value if isinstance(w, ast.Constant) else "RUN" for w in node.args if not _starred(w)]
                yield f"{file.relative_to(ROOT)}:{node.lineno}", list(map(str, words))


def _starred(node: ast.expr) -> bool:
    return isinstance(node, ast.Starred)


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the program (and of its shipped files), with `{}` for what is put in."""
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                yield where, "".join(str(p.value) if isinstance(p, ast.Constant) else HOLE for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield where, " ".join(node.value.split()) if "\n" in node.value else node.value
    for file in sorted(ROOT.rglob("*.yaml")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if found := re.search(r"promptcomp [a-z].*", line):
                yield f"{file.relative_to(ROOT)}:{number}", f": {re.sub(r'  .*|[(].*', '', found[0])}"


def suggested() -> Iterator[tuple[str, str]]:
    """The commands in these texts."""
    for where, text in texts():
        for found in QUOTED.finditer(text):
            yield where, (found[2] or found[3]).strip().rstrip(".,;")


def refusal(words: list[str]) -> str | None:
    """What the program has against the words (None: nothing); it reads them and does nothing. "..." stands for more."""
    abbreviated = "..." in words
    try:
        _parse([word for word in words if word != "..."])
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, or that which typer brings along
            raise
        return None if abbreviated and "Missing" in type(error).__name__ else error.format_message()
    return None


def _parse(words: list[str]) -> None:
    group, rest = PROGRAM, words
    while hasattr(group, "commands") and rest and rest[0] in group.commands:
        group, rest = group.commands[rest[0]], rest[1:]
    if rest and rest != ["--help"] and not hasattr(group, "commands"):
        group.make_context("promptcomp", list(rest))


@pytest.mark.parametrize(("where", "words"), list(called()))
def test_a_command_that_is_put_together_is_read(where: str, words: list[str]) -> None:
    assert refusal(words) is None, where


def test_commands_in_texts_are_read_and_paths_in_them_quoted() -> None:
    found = list(suggested())
    assert len(found) > 15
    for where, text in found:
        assert HOLE not in text, f"{where}: {text!r}: put it together with errors.command, which quotes"
        assert refusal(shlex.split(text)[1:]) is None, f"{where}: {text!r}"


def test_paths_are_quoted() -> None:
    assert command("fit", "--resume", Path("my run")) == "promptcomp fit --resume 'my run'"
    assert shlex.split(command("evaluate", Path("-odd")))[-1] == "./-odd"


def suggestions_of(printed: str) -> list[list[str]]:
    """The words of the commands at the end of a report."""
    lines = [line.removeprefix("next").strip() for line in printed.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("promptcomp ")]


def test_what_reports_suggest_works(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    small = ("trainer.max_steps=1", "evaluation.bounds=false", "seed=1")
    done = tiny_run("a run", *small)
    assert done.returncode == 0, done.stderr
    assert tiny_run("other", *small).returncode == 0
    compare, again = suggestions_of(done.stdout)
    assert run(*(word.replace("OTHER_RUN", "other") for word in compare)).returncode == 0
    assert again[-1] == "seed=2"
    assert run(*again, "trainer.max_steps=0").returncode == 0
    for more in ((), ("data.perturbation=wrong_labels",), ("data.seed=5",)):
        evaluated = run("evaluate", "a run", *more, "--output", f"new {len(more)}{more}".replace("/", ""))
        if evaluated.returncode:
            continue  # no such key in this data
        for words in suggestions_of(evaluated.stdout):
            found = run(*(word.replace("OTHER_RUN", "a run") for word in words))
            assert found.returncode == 0 or "other test examples" in found.stderr, found.stderr
    refused = run("evaluate", "new 0()")
    assert refused.returncode == 2
    assert "an evaluation of a run; name the run itself" in refused.stderr
    (tmp_path / "other" / "results.json").write_text("{")
    torn = run("compare", "other", "a run")
    advice = re.search(r"`(promptcomp .*?)` writes", torn.stderr)
    assert advice is not None
    assert run(*shlex.split(advice[1])[1:]).returncode == 0
    assert run("compare", "other", "a run").returncode == 0
