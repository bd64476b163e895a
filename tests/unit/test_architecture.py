"""Imports go one way: a module may import only what stands below it, and equals never import each other."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import promptcomp

ROOT = Path(promptcomp.__file__).parent
LEVELS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("api", "reference"),
    ("leaderboard", "distilling"),
    ("sweeps", "cluster", "comparing", "report", "exports", "bench", "judge", "rationales", "serving"),
    ("prompts",),
    ("run",),
    ("forecast",),
    ("experiment",),
    ("toy", "chat"),
    ("lightning_modules", "datamodules"),
    ("checkpoints",),
    ("evaluation",),
    ("rivals",),
    ("language_model",),
    ("lease", "vllm_connector"),
    ("memory", "batch", "config"),
    ("documents", "plotting", "webpage"),
    ("files", "terminal"),
    ("stopping",),
    ("errors", "plain"),
)
EXCEPTIONS = {
    ("run", "report"): "a finished run prints its table",
    ("datamodules", "toy"): "the sections of the toy worlds are listed with the others",
    ("memory", "config"): "errors of artifact files are user errors",
}
LEVEL = {name: i for i, level in enumerate(LEVELS) for name in level}


def _part(module: str) -> str:
    return module.split(".")[1]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("promptcomp"):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "promptcomp"
                else [node.module]
            )
            found |= {name for name in names if not name.endswith("__version__")}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("promptcomp.")}
    return found


def test_imports_go_one_way() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("promptcomp", *path.relative_to(ROOT).with_suffix("").parts))
        if module == "promptcomp.__init__":
            continue
        here = _part(module)
        for target in _imports(path):
            there = _part(target)
            allowed = here == there or LEVEL[there] > LEVEL[here] or (here, there) in EXCEPTIONS
            if not allowed:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def _third_party() -> set[str]:
    """The packages that promptcomp imports anywhere, without Python's own and vLLM, whose environment is its own."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"promptcomp", "vllm"}


def _installed_with(lines: Iterable[str]) -> set[str]:
    """Names of the distributions that requirements bring, those of the requirements' own requirements included."""
    found: set[str] = set()
    left = [Requirement(line) for line in lines]
    while left:
        here = left.pop()
        name = canonicalize_name(here.name)
        if name in found or name == "promptcomp":
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            needs = (Requirement(line) for line in metadata.requires(name) or ())
            left += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def test_what_is_imported_is_installed_without_the_tests() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name != "test"]
    there = _installed_with(sum(extras, project["dependencies"]))
    owners = metadata.packages_distributions()
    missing = [name for name in _third_party() if not {canonicalize_name(each) for each in owners[name]} & there]
    assert not missing


def test_names_are_found_at_once() -> None:
    """No two files and no two public classes have the same name."""
    files = [path for path in ROOT.rglob("*.py") if not path.stem.startswith("__")]
    names = [path.stem for path in files]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names += [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    assert not [name for name, count in Counter(names).items() if count > 1]


def test_methods_do_not_import_methods() -> None:
    folder = ROOT / "lightning_modules"
    training = {
        "exported",
        "method_config",
        "encoder_config",
        "encoder_module",
        "execution",
        "objective",
        "optim",
        "taught_module",
        "teacher_cache",
    }
    shared = {"base", "adapters", "__init__", *training}
    for path in folder.glob("*.py"):
        if path.stem not in shared:
            for target in _imports(path):
                if target.startswith("promptcomp.lightning_modules."):
                    stem = target.split(".")[2]
                    own = stem.startswith(path.stem.removesuffix("_config"))
                    assert stem in shared or own, f"{path.name} imports {target}"


def test_one_module_knows_the_caches_of_transformers() -> None:
    """Names there change between releases; code that is printed for users comes from that module too."""
    for path in ROOT.rglob("*.py"):
        if path != ROOT / "language_model" / "cache.py":
            text = path.read_text(encoding="utf-8")
            found = re.findall("past_key_values|cache_utils|reorder_cache", text)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
                    found += [alias.name for alias in node.names if alias.name.endswith("Cache")]
                elif isinstance(node, ast.Call):
                    found += [f"{word.arg}=" for word in node.keywords if word.arg == "cache"]
            assert not found, f"{path.name}: {found}"


def _heavy(code: str) -> str:
    """What a program imports that takes seconds; fails where the program does."""
    ends = "print({'torch', 'lightning', 'transformers', 'datasets', 'numpy', 'sklearn'} & set(sys.modules) or '')\n"
    done = subprocess.run([sys.executable, "-c", code + ends], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ONCE = "import functools, typer.main\ntyper.main.get_command = functools.cache(typer.main.get_command)\n"
"""The command line is made of its functions once, and not with every call."""


def test_data_sections_import_no_torch() -> None:
    assert not _heavy("import sys\nfrom promptcomp.datamodules import DATASETS\nassert len(DATASETS) >= 12\n")


def test_help_imports_no_torch() -> None:
    code = (
        f"import sys\n{ONCE}"
        "from typer.testing import CliRunner\n"
        "from promptcomp.cli import app\n"
        "def helps(command, words):\n"
        "    assert CliRunner().invoke(app, [*words, '--help']).exit_code == 0, words\n"
        "    for name, each in getattr(command, 'commands', {}).items():\n"
        "        helps(each, [*words, name])\n"
        "helps(typer.main.get_command(app), [])\n"
    )
    assert not _heavy(code)


FAST = {
    "methods": 0,
    "methods --json": 0,
    "data list": 0,
    "data list --json": 0,
    "data list table_icl": 0,
    "methods mend": 0,
    "experiments": 0,
    "experiments mend": 0,
    "explain": 0,
    "explain mend": 0,
    "explain trainer.select_by --json": 0,
    "explain --markdown": 0,
    "explain trainer.selct_by": 2,
    "fit loss_weight": 2,
    "fit list": 2,
    "models list": 0,
    "models list --json": 0,
    "models get smolm2": 2,
    "fit --method gist lm.path=smollm2": 2,
    "fit --method gist --dry-run lm.path=smollm2": 2,
    "fit --method gist lm.path=nowhere.gguf": 2,
    "sweep --list": 0,
    "sweep --list --json": 0,
    "fit": 2,
    "fit --method mned": 2,
    "fit --config nowhere.yaml": 2,
    "fit --config broken.yaml": 2,
    "fit --config list.yaml": 2,
    "fit --config files.yaml": 2,
    "fit --method mend lm.path=builtin:nowhere": 2,
    "fit --method mend lm.path=./nowhere": 2,
    "fit --method mend optim.lrr=1": 2,
    "fit --method mend optim.lr=-1": 2,
    "fit --method mend optim": 2,
    "fit --method mend data.name=nowhere": 2,
    "fit --method step_by_step data.targets=label": 2,
    "fit --method mend --dry-run optim.lrr=1": 2,
    "fit --method mend --with-controls optim.lrr=1": 2,
    "fit --method mend --slurm nowhere": 2,
    "fit --method mned --slurm": 2,
    "fit --resume nowhere": 2,
    "fit --resume run optim.lr=1": 2,
    "evaluate nowhere": 2,
    "evaluate run optim.lrr=1": 2,
    "data show --method mend optim.lrr=1": 2,
    "data validate --method mned": 2,
    "bench --method mend optim.lrr=1": 2,
    "bench --method mend --lengths 0": 2,
    "bench --server http://127.0.0.1:1/v1": 2,
    "bench --server http://127.0.0.1:1/v1 --text list.yaml": 2,
    "bench --server nonsense --model x --text list.yaml": 2,
    "bench --server http://127.0.0.1:1/v1 --model x --text nowhere": 2,
    "bench --server http://127.0.0.1:1/v1 --compressed x --concurrency 0": 2,
    "judge a b --malformed keep": 2,
    "judge run trained --local ./nowhere": 2,
    "rationales --method mned": 2,
    "rationales --method step_by_step --local ./nowhere": 2,
    "rationales data.name=rationale_files data.test=[nowhere.jsonl] --model x": 2,
    "fit --method mend method.init_from=nowhere": 2,
    "fit --method gist method.kl_weight=1 method.teacher=nowhere": 2,
    "fit --method step_by_step method.teacher.path=./nowhere": 2,
    "distill": 2,
    "distill --lm builtin:toy_decoder --text nowhere.txt -o x.safetensors": 2,
    "distill --lm builtin:nowhere --text list.yaml -o x.safetensors": 2,
    "distill --lm builtin:toy_decoder --text list.yaml -o x.safetensors --slots few": 2,
    "distill --lm builtin:toy_decoder --text list.yaml -o nowhere/x.safetensors": 2,
    "pretrain nowhere": 2,
    "pretrain list.yaml": 2,
    "pretrain toy_decoder optim.lrr=1": 2,
    "pretrain toy_t5 data.name=nowhere": 2,
    "pretrain text": 2,
    "curve step_by_step optim.lrr=1": 2,
    "curve step_by_step --metric nonsense": 2,
    "sweep nowhere": 2,
    "sweep broken.yaml": 2,
    "sweep list.yaml": 2,
    "sweep show nowhere": 2,
    "sweep loss_weight optim.lrr=1": 2,
    "sweep loss_weight optim.lr=-1": 2,
    "sweep loss_weight optim.lr=1..0": 2,
    "sweep loss_weight lm.path=builtin:nowhere": 2,
    "sweep loss_weight --objective nonsense": 2,
    "sweep loss_weight sweep.seedz=1": 2,
    "sweep --method mned optim.lr=1,2": 2,
    "fit --method mend evaluation.splits=[nowhere]": 2,
    "fit --method mend --dry-run evaluation.splits=[nowhere]": 2,
    "fit --method mend --with-controls evaluation.splits=[nowhere]": 2,
    "fit --config table.yaml evaluation.splits=[nowhere]": 2,
    "fit --config text.yaml evaluation.splits=[test]": 2,
    "fit --method mend data.max_context_tokens=1000": 2,
    "fit --method mend method.num_slots=1000": 2,
    "fit --method gist data.max_query_tokens=1000": 2,
    "fit --method gist method.num_slots=1000": 2,
    "fit --method gist method.reconstruction_weight=1 data.max_context_tokens=300": 2,
    "fit --method step_by_step data.max_input_tokens=1000": 2,
    "fit --method mend --dry-run lm.path=./lm": 2,
    "fit --config text.yaml data.max_tokens=4096": 2,
    "fit --method gist data.world.min_words=6 data.world.max_words=4": 2,
    "evaluate run": 2,
    "evaluate trained evaluation.splits=[nowhere]": 2,
    "data show --method mend --split nowhere": 2,
    "data validate --config files.yaml": 2,
    "data show --config files.yaml": 2,
    "bench": 2,
    "bench nowhere": 2,
    "bench run": 2,
    "bench --method mend evaluation.splits=[nowhere]": 2,
    "bench --method mend --slots 1000": 2,
    "bench --method mend --lm builtin:nowhere": 2,
    "bench --method mend --output run": 2,
    "compress": 2,
    "compress nowhere -o x": 2,
    "compress run -o x --text hello": 2,
    "compress trained -o x": 2,
    "compress trained -o x --file nowhere": 2,
    "compress trained -o run --text hello": 2,
    "serve": 2,
    "serve nowhere": 2,
    "serve run --name a:b": 2,
    "serve run --api-key-file nowhere": 2,
    "inspect": 2,
    "inspect nowhere": 2,
    "inspect run": 2,
    "generate": 2,
    "generate hello --prompt nowhere": 2,
    "generate hello --text hello": 2,
    "generate hello --text hello --model run": 2,
    "generate hello --file nowhere --model trained": 2,
    "checkpoint show nowhere": 2,
    "checkpoint verify run": 2,
    "checkpoint consolidate nowhere": 2,
    "checkpoint consolidate trained": 2,
    "checkpoint export nowhere -o x": 2,
    "export nowhere -o x": 2,
    "export nowhere.safetensors -o x --to peft": 2,
    "export list.yaml -o x": 2,
    "export trained -o x --to vllm": 2,
    "push nowhere user/name": 2,
    "push trained user/name": 2,
    "push trained name": 2,
    "export run -o x": 2,
    "export trained -o x --to peft": 2,
    "export trained -o run": 2,
    "curve step_by_step evaluation.splits=[nowhere]": 2,
    "curve step_by_step --split nowhere": 2,
    "sweep loss_weight evaluation.splits=[nowhere]": 2,
    "sweep loss_weight --objective method@nowhere": 2,
    "sweep loss_weight data.max_input_tokens=1000": 2,
    "sweep loss_weight --storage nonsense": 2,
    "sweep loss_weight --storage sqlite:///x --workers 2": 2,
    "sweep loss_weight sweep.pruning.metric=nonsense": 2,
    "sweep loss_weight sweep.pruning.metric=nonsense --dry-run": 2,
    "sweep work nowhere": 2,
    "sweep status nowhere": 2,
    "sweep report nowhere": 2,
    "sweep plot nowhere": 2,
    "sweep best nowhere": 2,
    "sweep doctor nowhere": 2,
    "leaderboard demonstration": 2,
    "leaderboard demonstrations --slots 0": 2,
    "leaderboard demonstrations optim.lr=1": 2,
    "leaderboard demonstrations mend:method.slotz=1": 2,
    "leaderboard build nowhere": 2,
}
"""Calls that end without torch, and their exit codes."""


def test_lists_and_mistakes_import_no_torch(tmp_path: Path) -> None:
    """What says only what there is, and every mistake in a configuration, is answered before anything heavy is read."""
    missing = "{name: instructions, files: {train: nowhere.jsonl}}"
    files = {
        "broken.yaml": "method: {name: mend\ndata: [",
        "list.yaml": "- mend\n",
        "files.yaml": f"{{method: {{name: gist}}, data: {missing}, lm: {{path: 'builtin:toy_decoder'}}}}",
        "table.yaml": "{method: {name: gist}, data: {name: table_icl, test: [list.yaml]}, lm: {path: gpt2}}",
        "text.yaml": "{method: {name: gist}, data: {name: text, paths: [list.yaml]}, lm: {path: ./lm}}",
        "lm/config.json": '{"model_type": "gpt2", "n_positions": 16}',
        "run/config.yaml": "{method: {name: mend}, data: {name: toy_icl}, lm: {path: 'builtin:toy_decoder'}}",
        "trained/config.yaml": "{method: {name: mend}, data: {name: toy_icl}, lm: {path: 'builtin:toy_decoder'}}",
        "trained/checkpoints/best.ckpt": "",
        "trained/checkpoints/last.ckpt": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = (
        f"import contextlib, io, os, sys\n{ONCE}"
        f"os.chdir({str(tmp_path)!r})\n"
        "from promptcomp.cli import main\n"
        f"for words, wanted in {FAST!r}.items():\n"
        "    sys.argv, said = ['promptcomp', *words.split()], io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "            main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == wanted, (words, end.code, said.getvalue())\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'datasets', 'optuna'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    assert not _heavy(code)
    assert not [name for name in ("nowhere", "x", "curves", "sweeps", "runs") if (tmp_path / name).exists()]


def test_sections_of_methods_import_no_torch() -> None:
    """The registry is filled from files that need none of what the methods themselves need."""
    code = (
        "import sys\n"
        "from promptcomp.lightning_modules import METHODS\n"
        "from promptcomp.language_model import LanguageModelConfig\n"
        "assert METHODS and LanguageModelConfig(path='builtin:toy_decoder')\n"
    )
    assert not _heavy(code)


def test_only_methods_know_methods_by_name() -> None:
    """What is asked of a method is asked of its section or its module."""
    methods = {path.stem for path in (ROOT / "lightning_modules").glob("*_config.py")} - {"method_config"}
    methods |= {stem.removesuffix("_config") for stem in methods}
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in ROOT.rglob("*.py")
        if path.parent != ROOT / "lightning_modules"
        for target in _imports(path)
        if target.startswith("promptcomp.lightning_modules.") and target.split(".")[2] in methods
    ]
    assert not wrong, "\n".join(wrong)
