"""What an LM answers behind a whole text, behind cartridges of it, and behind nothing: the page docs/examples.md.

Run: python benchmarks/examples.py PAGE --lm smollm2 --prompts BBH WORK --documents WORK, with the folders that
task_prompts.py and documents.py have worked in. Shown are the first held-out questions of each text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Never

import documents
import task_prompts

import promptcomp
from promptcomp.distilling import DistillOptions
from promptcomp.distilling.asked_text import AskedText
from promptcomp.distilling.distill_job import open_causal
from promptcomp.distilling.self_study import different, held_out, study
from promptcomp.distilling.teacher_answers import Teacher
from promptcomp.distilling.work_folder import WorkFolder
from promptcomp.language_model import LanguageModelConfig
from promptcomp.language_model.loading import open_tokenizer
from promptcomp.terminal import PlainConsole

SHOWN = 4
HEAD = """# Examples of answers

What SmolLM2-135M-Instruct (weights of 4 bits, dequantised) answers behind a whole text, behind cartridges of it, and
behind nothing. Shown are each text's first {shown} held-out questions, neither chosen nor corrected; answers end after
32 tokens. **Same** says that an answer is the whole text's word for word. The LM is small and often wrong: what a
cartridge is to keep is what the LM does behind the text, its mistakes included.
[Results](results.md#real-models-cartridges-of-task-prompts) has the figures, and this script made the page from the
folders of theirs:

    {command}
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--lm", default="smollm2")
    parser.add_argument("--prompts", nargs=2, type=Path, metavar=("BBH", "WORK"), required=True)
    parser.add_argument("--documents", type=Path, metavar="WORK", required=True)
    given = parser.parse_args()
    command = (
        f"python benchmarks/examples.py docs/examples.md --lm {Path(given.lm).name} --prompts BBH WORK --documents WORK"
    )
    parts = [HEAD.format(shown=SHOWN, command=command), "## Task prompts\n"]
    bbh, work = given.prompts
    plain: dict[str, Any] = {"template": "plain", "query": task_prompts.QUERY}
    for task in task_prompts.TASKS:
        text = task_prompts.prompt_of(bbh, task, [])
        sizes = {f"{slots} slots": f"memory-{slots}" for slots in task_prompts.SLOTS}
        parts += _part(given.lm, "float32", task, text.text, text.questions, work / task, sizes, plain)
    parts.append("## Documents\n")
    tokenizer = open_tokenizer(LanguageModelConfig(path=given.lm))
    for package in documents.PACKAGES:
        text = documents.document(package, tokenizer, ())
        folder = given.documents / text.name
        if (folder / "memory.safetensors").is_file():
            parts += _part(
                given.lm, "bfloat16", text.name, text.text, None, folder, {"1/8 of the positions": "memory"}, {}
            )
    given.page.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _part(
    path: str,
    dtype: str,
    name: str,
    text: str,
    questions: Sequence[str] | None,
    place: Path,
    sizes: dict[str, str],
    settings: dict[str, Any],
) -> Iterator[str]:
    """The lines of one text.

    Args:
        path: of the LM.
        dtype: of its weights.
        name: of the text.
        text: itself.
        questions: all of them, None: those that the LM has asked itself.
        place: with `memory.distill` and the cartridges.
        sizes: what a cartridge is called, and its file.
        settings: of the cartridges.
    """
    config, options, console = (
        LanguageModelConfig(path=path, dtype=dtype),
        DistillOptions(**settings),
        PlainConsole(quiet=True),
    )
    lm = open_causal(config, "cpu").eval()
    with WorkFolder(place / "memory.distill") as folder:
        asked = questions and different(questions)
        asked = asked or study(folder.questions, text, options.num_questions, options.seed, _never)[0]
        read = AskedText(lm, config, text, options, folder, console)
        queries = read.queries(asked)
        stops, most = read.reader.format.stop_ids, options.answer_tokens
        whole = Teacher(lm, lambda: lm.encode(read.context), lambda: False)
        answers = whole.answers(queries, stops, most, folder, options.answer_batch, lambda more: None)
    shown = held_out(len(asked), None, options.seed)[:SHOWN]
    tokenizer = read.reader.tokenizer
    none = Teacher(lm, lambda: None, lambda: False).write([queries[number] for number in shown], stops, most)
    found = {"whole text": [str(tokenizer.decode(list(answers[n].labels), skip_special_tokens=True)) for n in shown]}
    for size, file in sizes.items():
        prompt = promptcomp.load_prompt(place / f"{file}.safetensors")
        found[size] = prompt.generate([asked[number] for number in shown], max_new_tokens=most)
    found["nothing"] = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in none]
    yield f"### {name}\n"
    yield f"{len(read.ids)} tokens.\n"
    for row, number in enumerate(shown):
        yield f"**{_line(asked[number])}**\n"
        yield "| behind | answer |"
        yield "|---|---|"
        for what, texts in found.items():
            same = what != "whole text" and texts[row].strip() == found["whole text"][row].strip()
            yield f"| {what} | {'**Same**' if same else _line(texts[row])} |"
        yield ""


def _never(*request: object) -> Never:
    raise SystemExit("the questions of this folder are not all there: run documents.py first")


def _line(text: str) -> str:
    """As a cell of a table."""
    cell = " ".join(text.split())
    for sign in "\\|*_`<[":
        cell = cell.replace(sign, f"\\{sign}")
    return cell or "(nothing)"


if __name__ == "__main__":
    main()
