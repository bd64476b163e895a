"""The code blocks of README, CONTRIBUTING and docs/: where they are, and what tests do with each.

`python -m tests.documented` lists them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
RUN = (
    "explain",
    "methods",
    "experiments",
    "models list",
    "sweep --list",
    "data list",
)
"""Command lines that begin so are run; the others are understood, with their experiment and keys, and not run."""
PLACEHOLDERS = {"S": "1", "K": "2", "$s": "1", "$k": "2"}
"""What stands for a number."""


@dataclass(frozen=True)
class Block:
    """A code block; `language` is empty for an indented one."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, to find it again."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words behind `promptcomp` of each command line; comments, pipes and shell variables are left out."""
        found = []
        text = re.sub(r"\\\n\s*", "", self.text)
        text = re.sub(r'"[^"]*"', lambda found: found[0].replace("\n", " "), text)
        for line in text.splitlines():
            if (
                not re.match(r"\$ |\w*=\S+ promptcomp |.*\b(do|&&) \S*promptcomp |\S*promptcomp ", line)
                or "sbatch" in line
            ):
                continue
            for part in re.findall(
                r"(?:^|[ /])promptcomp (.*?)(?=$| && | \|\| |; )", re.sub(r"  +#.*| # .*", "", line)
            ):
                if "=> " in part or not re.match(r"[a-z-]", part):
                    continue
                part = re.sub(r"\$'(?:[^'\\]|\\.)*'", "text", part)
                words = shlex.split(part.partition(" > ")[0].partition(" | ")[0])
                found.append([re.sub(r"^([\w.]+=)?(\$?\w)$", _number, word) for word in words])
        return found

    @property
    def what_tests_do(self) -> str:
        """In a word."""
        if self.language == "python":
            if ">>>" in self.text:
                return "run (tests/unit/test_api.py)"
            return "run" if self.page.parent.name == "tutorials" else "compiled, its names looked up"
        if self.commands:
            return "run" if all(is_run(words) for words in self.commands) else "understood, not run"
        return "read as a configuration" if self.language == "yaml" else "a drawing, output or a formula"


def is_run(words: list[str]) -> bool:
    """Whether a command line is cheap enough to be run."""
    return " ".join(words).startswith(RUN)


def blocks() -> Iterator[Block]:
    """All of them, in the order of the pages."""
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").splitlines()
        at = 0
        while at < len(lines):
            fence = re.match(r"( *)```(\w*)", lines[at])
            if fence:
                end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
                text = "\n".join(line.removeprefix(fence[1]) for line in lines[at + 1 : end])
                yield Block(page, at + 2, fence[2], text)
                at = end + 1
            elif re.match(r" {4,}\S", lines[at]) and (at == 0 or not lines[at - 1].strip()):
                end = at
                while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
                    end += 1
                yield Block(page, at + 1, "", "\n".join(line.strip() for line in lines[at:end]))
                at = end
            else:
                at += 1


def _number(found: re.Match[str]) -> str:
    return (found[1] or "") + PLACEHOLDERS.get(found[2], found[2])


if __name__ == "__main__":
    for block in blocks():
        print(f"{block.place:40} {block.language or '-':8} {block.what_tests_do}")
        for words in block.commands:
            print(f"    {'run' if is_run(words) else 'understood':10} promptcomp {shlex.join(words)}")
