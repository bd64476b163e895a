"""A fuzzer of what the program reads: valid files and words, changed at random, go through it in this process.

Run: python -m tests.fuzz [CASES] [SEED]. Every case has to end within a minute with exit code 0, 1 or 2, a message
where it is not 0, and no control character of a file on the screen. The same seed makes the same cases.
"""

from __future__ import annotations

import contextlib
import csv
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import yaml

from promptcomp.cli import main
from promptcomp.evaluation.predictions import Prediction, write_predictions
from promptcomp.evaluation.results import Estimate, Results, SplitResult, TaskResult, write_results
from promptcomp.experiment import load
from promptcomp.plain import UNSEEN
from promptcomp.run.run_directory import MetricsFile, RunDirectory, write_environment
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import point_id
from promptcomp.sweeps.study import begin
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import sweep_of
from tests.prompt_runs import save_lm, save_run

SECONDS = 60
NASTY: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 2**31, 2**63, 2**70, -(2**70), 1e308, float("nan"), float("inf"), -0.0, 10**30),
    *(
        "",
        " ",
        "a",
        "../../x",
        "/dev/null",
        "/",
        "~",
        "x" * 300,
        "x" * 5000,
        "\x1b[31m",
        "[red]x[/y]",
        "\u202e",
        "é\u0301",
    ),
    *("null", "nan", "yes", "1e5", "2024-13-45", "${x}", "{{x}}", "{input}", "{", "%s", "\ud800", "\n", "\t", ",", '"'),
    *([], {}, [[]], [None], {"name": "x"}, {"": 1}, [1, "a", None], {"path": ".."}, ["a"] * 50),
)
"""Values that are put in the place of others."""
PIECES = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\r\n", b"\n\n", b"[" * 500, b"{" * 500, b"]", b"}", b'"', b"'"),
    *(
        b"&a [*a]",
        b"*a",
        b"!!int x",
        b"!!python/object:os.system",
        b"2024-13-45",
        b"9" * 5000,
        b"-9e999",
        b"NaN",
        b"\\u",
    ),
    *(
        b"? [a]",
        b"<<: ",
        b": ",
        b"- ",
        b"#",
        b"---\n",
        b"%YAML 9",
        b"\\ud800",
        b"\x1b[31m",
        b"\xe2\x80\xae",
        b",,,",
        b"\t",
    ),
)
"""Bytes that are put between others."""


_TOLD = "{{name: instructions, files: {{train: {0}, test: {0}}}, dev_examples: 2}}"


class _Hang(BaseException):
    """A case took too long."""


@dataclass(frozen=True)
class Failure:
    """A case that did not end as it has to."""

    number: int
    words: tuple[str, ...]
    change: str
    what: str

    def __str__(self) -> str:
        return (
            f"case {self.number}: promptcomp {' '.join(map(ascii, self.words))}\n  change: {self.change}\n  {self.what}"
        )


def run(words: Sequence[str], folder: Path) -> tuple[int | None, str, str]:
    """The program on `words` in `folder`: exit code (None: a traceback or a hang), what it printed, what it said."""

    def stop(*_: object) -> None:
        raise _Hang

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before, here = signal.signal(signal.SIGALRM, stop), os.getcwd()
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=2)  # a call outside of Python
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            patch.object(sys, "argv", ["promptcomp", *words]),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a query\n"))),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            code: int | None
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except _Hang:
                code = None
                print(f"took more than {SECONDS} s: {traceback.format_exc(limit=-4)}", file=err)
            except BaseException:
                code = None
                traceback.print_exc(limit=-6)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.chdir(here)
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


class Bench:
    """Valid files of every kind, and the commands that read them.

    Args:
        folder: where they are made; every case works on a copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lm = save_lm(folder / "lm", "llama")
        self.small = [f"lm.path={self.lm}", "trainer.batch_size=2"]
        self._configs()
        self._data()
        self._run("gist", {"name": "gist", "num_slots": 2})
        self._run("mend", {"name": "mend", "num_slots": 2})
        self._sweep()
        words = ["compress", "runs/gist", "--demonstrations", "rows.jsonl", "-o", "prompt.safetensors"]
        (folder / "rows.jsonl").write_text('{"input": "a", "output": "b"}\n' * 3)
        code, out, err = run(words, folder)
        assert code == 0, (out, err)

    def _configs(self) -> None:
        for name in ("mend", "gist", "step_by_step", "no_prompt", "metaicl"):
            small = self.small if name != "step_by_step" else []  # its answers are words of the toy world's LM
            tree = load(name, None, [*small, *self.data_of(name)]).model_dump(mode="json")
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        sweep = {
            "title": "t",
            "experiment": "mend",
            "seeds": 2,
            "space": {"method.num_slots": [1, 2]},
        }
        sweep |= {"sampler": "grid", "objectives": [{"metric": "accuracy", "direction": "maximize"}]}
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        profile = {
            "default": {"partition": "gpu", "time": "2:00:00", "nodes": 1, "gpus_per_node": 1, "cpus_per_task": 2}
        }
        (self.folder / "slurm.yaml").write_text(yaml.safe_dump(profile))

    @staticmethod
    def data_of(method: str) -> list[str]:
        """Words that put small data in the place of a method's large one."""
        return [f"data={_TOLD.format('told.json')}"] if method == "gist" else []

    def _data(self) -> None:
        rows = [
            {"task": f"t{i % 2}", "input": f"where is it {i}", "output": "ab"[i % 2], "options": ["a", "b"]}
            for i in range(24)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "table.jsonl").write_text(lines)
        with (self.folder / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["task", "input", "output"])
            writer.writeheader()
            writer.writerows({name: row[name] for name in ("task", "input", "output")} for row in rows)
        pd.DataFrame(rows).to_parquet(self.folder / "table.parquet")
        (self.folder / "table.json").write_text(json.dumps(rows))
        told = [{"instruction": f"Say {i}.", "input": "x", "output": f"{i}"} for i in range(12)]
        (self.folder / "told.json").write_text(json.dumps(told))
        (self.folder / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        metaicl = self.folder / "metaicl"
        (metaicl / "config").mkdir(parents=True)
        (metaicl / "config" / "small.json").write_text(json.dumps({"train": ["t0"], "test": ["t1"]}))
        for task in ("t0", "t1"):
            (metaicl / "data" / task).mkdir(parents=True)
            for name in ("16384_100_train", "16_100_train", "16_100_test"):
                own = "".join(json.dumps({**row, "task": task}) + "\n" for row in rows)
                (metaicl / "data" / task / f"{task}_{name}.jsonl").write_text(own)

    def _run(self, name: str, method: dict[str, Any]) -> None:
        folder = self.folder / "runs" / name
        folder.parent.mkdir(exist_ok=True)
        save_run(folder, self.lm, method)
        estimate = Estimate(value=0.5, ci=(0.4, 0.6))
        task = TaskResult(task="t", kind="classification", count=4, seeds=1, metric="macro_f1", method=0.5)
        split = SplitResult(
            metric="accuracy",
            count=4,
            method=0.5,
            full_prompt=0.9,
            no_prompt=0.1,
            rows={row: {"accuracy": estimate} for row in ("method", "full_prompt", "no_prompt")},
            tasks=(task,),
            examples_sha256="x",
        )
        found = Results(method=name, family="decoder", data="toy_icl", lm="x", seed=0, splits={"test": split})
        write_results(folder / "results.json", found)
        write_predictions(folder / "predictions.jsonl", [_prediction(i) for i in range(4)])
        MetricsFile(folder / "metrics.csv").append(10, {"loss": 1.0, "dev/loss": 1.0})
        write_environment(RunDirectory(folder), {})

    def _sweep(self) -> None:
        words = [*self.small, "method.num_slots=1,2", "sweep.seeds=2"]
        directory = SweepDirectory(self.folder / "sweep")
        sweep = begin(sweep_of("mend", words), directory, None, 1)
        for slots in (1, 2):
            for seed in (0, 1):
                cell = f"num_slots_{slots}-s{seed}"
                params = {"method.num_slots": slots}
                planned = Trial(point=point_id(params), seed=seed, params=params)
                number = sweep.trials.begin(planned, {}, cell=cell, worker="host:1", place=sweep.place)
                sweep.trials.complete(number, [0.5], {}, 1.0)
                folder = directory.runs / cell
                shutil.copytree(self.folder / "runs" / "mend", folder)
        sweep.close()

    def case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        """Words of a command, and what was changed under `folder`, a copy of the files."""
        makers: list[tuple[int, Callable[[random.Random, Path], tuple[list[str], str]]]] = [
            (4, self._config_case),
            (3, self._override_case),
            (4, self._data_case),
            (3, self._run_case),
            (2, self._artifact_case),
            (3, self._sweep_case),
        ]
        return rng.choices([maker for _, maker in makers], [weight for weight, _ in makers])[0](rng, folder)

    def _config_case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        name = rng.choice(["mend.yaml", "gist.yaml", "step_by_step.yaml", "sweep.yaml", "slurm.yaml", "metaicl.yaml"])
        change = mutate(rng, folder / name)
        if name == "sweep.yaml":
            return ["sweep", name, "--dry-run", "--no-measure", *self.small], change
        if name == "slurm.yaml":
            return [
                "fit",
                "--method",
                "mend",
                f"--slurm=slurm.yaml:{rng.choice(['default', 'x'])}",
                "--dry-run",
            ], change
        commands = [["data", "validate"], ["fit", "--dry-run"], ["curve", name], ["rationales", "--show-template"]]
        command = rng.choice(commands[:2] * 3 + commands[2:])
        return [*command, *(["--dry-run"] if command[0] == "curve" else ["--config", name])], change

    def _override_case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        del folder
        method = rng.choice(["mend", "gist", "no_prompt", "step_by_step"])
        keys = [".".join(path) for path in _paths(load(method, None, self.data_of(method)).model_dump(mode="json"))]
        words = [f"{rng.choice(keys)}={_word(rng)}" for _ in range(rng.choice([1, 1, 2]))]
        command = rng.choice(["fit", "validate", "sweep", "show"])
        if command == "sweep":
            words = [word if rng.random() < 0.6 else f"{word},{_word(rng)}" for word in words]
            return ["sweep", "--method", method, *self.small, *words, "--dry-run", "--no-measure"], "words"
        start = {"fit": ["fit", "--dry-run"], "validate": ["data", "validate"], "show": ["data", "show"]}[command]
        return [*start, "--method", method, *self.small, *self.data_of(method), *words], "words"

    def _data_case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        kind = rng.choice(
            ["table.jsonl", "table.csv", "table.parquet", "table.json", "told.json", "told.jsonl", "metaicl"]
        )
        path = folder / kind
        if kind == "metaicl":
            path = rng.choice(sorted(each for each in path.rglob("*") if each.is_file()))
            data = "{name: metaicl, folder: metaicl, partition: small, seeds: [100], num_demonstrations: 2, dev: none}"
        elif kind.startswith("told"):
            data = _TOLD.format(kind)
        else:
            options = "" if kind.endswith(("json", "jsonl", "parquet")) else ", columns: {options: null}"
            data = f"{{name: table_icl, train: [{kind}], test: [{kind}], num_demonstrations: 2, dev_share: 0{options}}}"
        change = mutate(rng, path)
        start = rng.choice([["data", "validate"], ["data", "show"], ["fit", "--dry-run"]])
        method = "gist" if kind.startswith("told") else "mend"
        return [*start, "--method", method, *self.small, f"data={data}"], f"{path.name}: {change}"

    def _run_case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        place = folder / "runs" / rng.choice(["gist", "mend"])
        path = rng.choice(sorted(each for each in place.rglob("*") if each.is_file()))
        change = f"{path.relative_to(folder)}: {mutate(rng, path)}"
        one = str(place.relative_to(folder))
        return [
            *rng.choice(
                [
                    ["compare", "runs/gist", "runs/mend"],
                    ["compare", "runs/mend", "runs/gist", "-f", "markdown"],
                    ["evaluate", one, "evaluation.splits=[nothing]"],
                    ["fit", "--resume", one, "trainer.max_steps=1"],
                    ["checkpoint", "show", one],
                    ["checkpoint", "verify", one],
                    ["export", one, "--to", "tensors", "-o", "exported"],
                    ["inspect", one],
                    ["compress", one, "--demonstrations", "rows.jsonl", "-o", "x.safetensors"],
                    ["judge", one, "runs/mend", "--local", "nothing"],
                    ["generate", "--model", one, "--demonstrations", "rows.jsonl", "--max-new-tokens", "1", "q"],
                ]
            )
        ], change

    def _artifact_case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        name = rng.choice(["prompt.safetensors", "prompt.safetensors", "rows.jsonl"])
        change = f"{name}: {mutate(rng, folder / name)}"
        if name == "rows.jsonl":
            return ["compress", "runs/gist", "--demonstrations", name, "-o", "x.safetensors"], change
        ask = ["generate", "--prompt", name, "--max-new-tokens", "1", "q"]
        return rng.choice([["inspect", name], ["inspect", name, "--json"], ask]), change

    def _sweep_case(self, rng: random.Random, folder: Path) -> tuple[list[str], str]:
        place = folder / "sweep"
        path = rng.choice(sorted(each for each in place.rglob("*") if each.is_file() and each.suffix != ".ckpt"))
        change = f"{path.relative_to(folder)}: {mutate(rng, path)}"
        commands = [
            ["show"],
            ["show", "-f", "json"],
            ["show", "-f", "trials"],
            ["best"],
            ["doctor"],
            ["doctor", "--repair"],
        ]
        chosen = rng.choice(commands)
        return ["sweep", chosen[0], "sweep", *chosen[1:]], change


def _prediction(number: int) -> Prediction:
    rows = ("no_prompt", "method", "full_prompt")
    return Prediction(
        split="test",
        example=number,
        task="t",
        kind="classification",
        seed=0,
        context=number,
        gold=1,
        options=("a", "b"),
        scores=dict.fromkeys(rows, (0.1, 0.2)),
        prediction=dict.fromkeys(rows, 1),
        correct=dict.fromkeys(rows, True),
        loss=dict.fromkeys(rows, 0.5),
        gold_tokens=2,
    )


def _paths(tree: Any, start: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*start, key)
        if isinstance(value, dict):
            yield from _paths(value, (*start, key))


def _word(rng: random.Random) -> str:
    """A value as a word of the command line."""
    value = rng.choice(NASTY)
    if isinstance(value, str) or rng.random() < 0.3:
        piece = value if isinstance(value, str) else rng.choice(PIECES).decode("utf-8", "surrogateescape")
        return piece.replace("\0", "").replace("\ud800", "\udcff")
    return json.dumps(value) if rng.random() < 0.7 else str(value)


def mutate(rng: random.Random, path: Path) -> str:
    """Change a file, or what is in its place; what was done."""
    kind = rng.choices(["values", "bytes", "place"], [6, 4, 1])[0]
    if kind == "place":
        return _replace(rng, path)
    if kind == "values" and (change := _change_values(rng, path)) is not None:
        return change
    content = bytearray(path.read_bytes())
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(5):
            case 0:
                content[at : at + rng.choice([1, 2, 10, 1000])] = b""
                done.append(f"cut at {at}")
            case 1:
                piece = rng.choice(PIECES)
                content[at:at] = piece
                done.append(f"put {piece[:12]!r} at {at}")
            case 2 if content:
                at %= len(content)
                content[at] = rng.randrange(256)
                done.append(f"byte {at}")
            case 3:
                del content[at:]
                done.append(f"ended at {at}")
            case _:
                end = at + rng.choice([5, 50, 500])
                content[at:at] = content[at:end]
                done.append(f"doubled {at}:{end}")
    path.write_bytes(content)
    return ", ".join(done)


def _replace(rng: random.Random, path: Path) -> str:
    path.unlink()
    match rng.randrange(5):
        case 0:
            path.mkdir()
            return "a folder"
        case 1:
            os.mkfifo(path)
            return "a pipe"
        case 2:
            path.symlink_to("nowhere")
            return "a dangling link"
        case 3:
            path.symlink_to(path.name)
            return "a link to itself"
        case _:
            path.touch()
            return "empty"


def _change_values(rng: random.Random, path: Path) -> str | None:
    """Change values inside a JSON or YAML text (for lines: of one line); None where the file is no such text."""
    with contextlib.suppress(UnicodeDecodeError, ValueError, yaml.YAMLError):
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".jsonl", ".log"):
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            tree = json.loads(lines[at])
            change = _change(rng, tree)
            lines[at] = json.dumps(tree)
            path.write_text("\n".join(lines))
            return f"line {at + 1}, {change}"
        if path.suffix in (".json", ".yaml"):
            tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
            change = _change(rng, tree)
            made = json.dumps(tree) if path.suffix == ".json" else yaml.safe_dump(tree, allow_unicode=False)
            path.write_text(made, errors="surrogatepass")
            return change
        if path.suffix == ".csv":
            cells = list(csv.reader(io.StringIO(text)))
            row = rng.choice(cells)
            row[rng.randrange(len(row))] = str(rng.choice(NASTY))
            out = io.StringIO()
            csv.writer(out).writerows(cells)
            path.write_text(out.getvalue(), errors="surrogatepass")
            return "a cell"
    return None


def _change(rng: random.Random, tree: Any) -> str:
    """Change one place of a tree of mappings and lists; what was done."""
    places: list[tuple[Any, Any]] = []
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        items = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        places += [(node, key) for key, _ in items]
        nodes += [value for _, value in items]
    if not places:
        raise ValueError
    node, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del node[key]
            return f"{key!r} left out"
        case 1 if isinstance(node, dict):
            node[f"{key}{rng.choice(['s', ' ', chr(27), ''])}x"] = node.pop(key)
            return f"{key!r} named otherwise"
        case 2:
            other = rng.choice(places)
            node[key] = json.loads(json.dumps(other[0][other[1]]))
            return f"{key!r} = that of {other[1]!r}"
        case _:
            node[key] = rng.choice(NASTY)
            return f"{key!r} = {node[key]!r:.60}"


def failures(cases: int, seed: int = 0, say: Callable[[str], object] = lambda _: None) -> list[Failure]:
    """Run the cases; those that did not end as they have to."""
    found: list[Failure] = []
    counts: Counter[int | None] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        bench = Bench(_made(Path(temporary) / "valid"))
        for number in range(cases):
            rng, folder = random.Random(f"{seed}-{number}"), Path(temporary) / "case"
            shutil.copytree(bench.folder, folder, ignore=shutil.ignore_patterns("lm"))
            words, change = bench.case(rng, folder)
            code, out, err = run(words, folder)
            counts[code] += 1
            problem = _problem(code, out, err)
            if problem:
                found.append(Failure(number, tuple(words), change, problem))
                say(str(found[-1]))
            shutil.rmtree(folder)
    say(f"{cases} cases, exit codes {dict(counts)}, {len(found)} failures")
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _problem(code: int | None, out: str, err: str) -> str:
    if code not in (0, 1, 2):
        return f"exit code {code}: {err[-1500:]}"
    if code and not (out + err).strip():
        return f"exit code {code} without a word"
    if "Traceback" in err:
        return f"a traceback: {err[-1500:]}"
    seen = UNSEEN.search(out + err)
    return (
        f"the character {seen[0]!r} on the screen: {(out + err)[max(0, seen.start() - 60) : seen.end() + 20]!r}"
        if seen
        else ""
    )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    cases, seed = [*numbers, *(1000, 0)[len(numbers) :]]
    sys.exit(bool(failures(cases, seed, say=lambda text: print(text, flush=True))))
