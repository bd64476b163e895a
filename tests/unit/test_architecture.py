"""Imports go one way: a module may import only what stands below it, and equals never import each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import promptcomp

ROOT = Path(promptcomp.__file__).parent
LEVELS = (
    ("__main__",),
    ("cli",),
    ("commands", "in_memory"),
    ("api",),
    ("sweeps", "cluster", "comparing", "report", "prompts", "checkpoints", "exports", "bench", "judge", "rationales"),
    ("run",),
    ("forecast",),
    ("experiment",),
    ("lightning_modules", "datamodules", "pretrain"),
    ("language_model", "evaluation", "endpoints"),
    ("lease", "plugins"),
    ("memory", "batch", "config", "model_cost"),
    ("documents", "plotting"),
    ("files", "terminal"),
    ("errors", "stopping", "plain"),
)
EXCEPTIONS = {
    ("run", "report"): "a finished run prints its table",
    ("pretrain", "datamodules"): "a base LM is trained on the tasks of the embedded world and on ICL text",
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


def test_methods_do_not_import_methods() -> None:
    folder = ROOT / "lightning_modules"
    state = {"trained", "trained_state", "optimizer_state", "checkpoint_files", "sharded_files", "shards", "resuming"}
    training = {"blocks", "execution", "method", "objective", "offload", "optim", "losses", "sharding"}
    shared = {"base", "adapters", "teachers", "__init__", *state, *training}
    for path in folder.glob("*.py"):
        if path.stem not in shared:
            for target in _imports(path):
                if target.startswith("promptcomp.lightning_modules."):
                    assert target.split(".")[2] in shared, f"{path.name} imports {target}"


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


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from promptcomp.cli import app\n"
        "for word in ('', 'fit', 'evaluate', 'compare', 'data', 'bench', 'curve', 'rationales', 'sweep'):\n"
        "    assert CliRunner().invoke(app, [*word.split(), '--help']).exit_code == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
