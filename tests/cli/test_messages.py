"""What a person reads after a mistake: one message, exit code 2, no traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from promptcomp import documents
from promptcomp.errors import ConfigError, NoSpace, RankLost
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fit",), "give either --method NAME"),
        (("fit", "--method", "mned"), "did you mean 'mend'?"),
        (("fit", "--method", "mend", "optim.lrr=1"), "optim.lrr: unknown key; did you mean 'lr'?"),
        (("fit", "--method", "mend", "optim.lr=fast", "seeed=1"), "seeed: unknown key; did you mean 'seed'?"),
        (("fit", "--method", "mend", "method.name=mned"), "did you mean 'mend'?"),
        (("fit", "--method", "mend", "trainer.max_steps"), "an override is written section.key=value"),
        (("fit", "--config", "nowhere.yaml"), "nowhere.yaml: no such configuration file"),
        (("fit", "--resume", "nowhere"), "nowhere: no such run directory"),
        (("fit", "--resume", "x", "seed=1"), "x: no such run directory"),
        (("evaluate", "nowhere"), "nowhere: no such run directory"),
        (("compare", "nowhere"), "nowhere"),
        (("pretrain", "toy_decodre"), "did you mean 'toy_decoder'?"),
        (("data", "show", "--method", "mend", "--split", "tset"), "tset"),
        (("fit", "--method", "mend", "evaluation.splits=[tset]"), "split 'tset' is unknown; this data has"),
        (
            ("fit", "mend", "evaluation.splits=[test,dev,test]"),
            "evaluation.splits = ['test', 'dev', 'test']: 'test' occurs",
        ),
        (("fit", "mend", "lm.path=''"), "lm.path = '': "),
        (
            ("fit", "mend", "lm.revision=main"),
            "lm.revision = 'main' is for names of the hub, and builtin:toy_decoder is none",
        ),
        (
            ("fit", "mend", "lm.path=.", "lm.revision=main"),
            "lm.revision = 'main' is for names of the hub, and . is none",
        ),
        (("fit", "mend", "name=.."), "name = '..': "),
        (("judge", "a", "b", "--malformed", "keep"), "choose drop or tie"),
        (("judge", "a", "b", "--seed", "-1"), "--seed"),
        (("data", "show", "mend", "--count", "9" * 20), "--count"),
        (("fit", "mend", "--bounds-only", "--keep-tasks", "."), "--keep-tasks .: is no file"),
        (("curve", ""), "'' is neither a shipped experiment nor a YAML file"),
        (("curve", "step_by_step", "--against", ","), "--against names no method"),
        (("serve", ".", "--name", "\udcff"), "is no name; leave it out"),
        (("bench", "--method", "mend", "--lengths", "8,0"), "--lengths '8,0': give whole numbers of at least 1"),
        (("bench", "--method", "mend", "--batch-sizes", "9" * 20), "and below a million"),
        (("sweep", "mend", f"optim.lr=1e-4..1e-3:steps={'9' * 20}"), "steps: Input should be less than or equal to"),
        (("sweep", "mend", "data.world.seed=1..1000000000000"), "the grid has 1,000,000,000,000 points"),
        (("compress", "nowhere", "-o", "x", "--text", "a", "--device", "tpu"), "nowhere: no such run directory"),
    ],
)
def test_one_message_and_exit_code_2(words: tuple[str, ...], expected: str, tmp_path: Path, run: Run) -> None:
    done = run(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())  # a refused run leaves nothing behind


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fit --resume x --explain", "--explain goes with --dry-run"),
        ("fit mend --dry-run --slurm --device-memory 80", "--device-memory goes with --dry-run, and with no --slurm"),
        ("fit mend --keep-by loss", "--keep-by goes with --keep-tasks"),
        ("sweep mend optim.lr=1e-3,2e-3 --no-measure", "--no-measure goes with --dry-run"),
        ("sweep mend optim.lr=1e-3,2e-3 --slurm --devices 0", "--devices are this machine's"),
        ("sweep mend optim.lr=1e-3,2e-3 trainer.accelerator=cpu --devices 0", "trainer.accelerator=cpu uses no GPUs"),
        ("curve step_by_step --size-key lm.path", "--size-key goes with --sizes"),
        ("distill --lm x --text t -o o --questions q --num-questions 8", "--num-questions is for questions that an LM"),
        ("distill --lm x --text t -o o --ask-key-env KEY", "--ask-key-env has the key of --ask-model"),
        ("serve . --api-key-file f --api-key-env KEY", "--api-key-env and --api-key-file both name the key"),
        ("generate a --prompt x --seed 3", "--seed is for tokens that are drawn; give --temperature too"),
        ("compress x --text a -o o --rival quantize --slots 4", "has a size of its own"),
        ("bench --method mend --text f", "--text goes with --server"),
        ("bench --server http://x/v1 --compressed m --repeats 5", "--repeats is for measurements on this machine"),
        ("judge a b --local x --rpm 5", "--rpm is for an endpoint"),
        ("judge a b --model x --batch-size 5", "--batch-size goes with --local"),
        ("compare a b --format csv --json", "--json and --format csv: give one of them"),
    ],
)
def test_no_option_is_passed_over_in_silence(words: str, expected: str, tmp_path: Path, run: Run) -> None:
    done = run(*words.split())
    assert (done.returncode, expected in done.stderr) == (2, True), done.stdout + done.stderr
    assert not any(tmp_path.iterdir())


def test_every_mistake_is_told_at_once(run: Run) -> None:
    done = run("fit", "--method", "mend", "optim.lr=-1", "method.num_slot=2", "trainer.max_steps=x")
    assert done.returncode == 2
    for part in ("optim.lr = -1", "did you mean 'num_slots'?", "trainer.max_steps = 'x'"):
        assert part in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a mapping"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"method: {name: mend", "not valid YAML"),
        (b"\xff\xfe\x00bad", "not UTF-8"),
        (b"method: {name: mend}\n", "data: missing"),
        (b"method: {num_slots: 3}\n", "method.name: missing"),
    ],
)
def test_bad_files(content: bytes, expected: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    done = run("fit", "--config", "bad.yaml")
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout.startswith("promptcomp ")
    text = run("--help").stdout
    for command in ("fit", "evaluate", "compare", "pretrain", "methods", "data", "doctor"):
        assert command in text


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a mistake"), 2, "a mistake"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 74, "cannot write 'x'"),
        (OSError(errno.EFBIG, "File too large", "x"), 74, "cannot write 'x'"),
        (NoSpace("x: cannot be written"), 74, "cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "cannot write 'x'"),
        (MemoryError(), 71, "out of memory: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 71, "out of memory: CUDA"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 71, "out of memory"),
        (FloatingPointError("the loss is not finite"), 65, "lower optim.lr"),
        (RankLost("gone", 71), 71, "gone"),
        (RankLost("gone", -9), 1, "gone"),
    ],
)
def test_exit_codes(error: Exception, code: int, said: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(documents, "shipped", failing)
    done = run("experiments")
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
