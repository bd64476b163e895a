"""promptcomp: train prompt compressors, measure what they keep of a prompt, save compressed prompts as files.

    import promptcomp

    run = promptcomp.fit("gist", trainer__max_steps=100)
    prompt = promptcomp.load_compressor(run).compress("Translate into French.")
    print(prompt.generate("good morning"))

These names are imported when they are first used, so that `import promptcomp` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = [
    "CompressedPrompt",
    "ConfigError",
    "Run",
    "TextCompressor",
    "__version__",
    "compare",
    "compress",
    "distill",
    "evaluate",
    "fit",
    "load_compressor",
    "load_prompt",
    "load_run",
    "sweep",
]

if TYPE_CHECKING:
    from promptcomp.api import TextCompressor, distill, evaluate, fit, load_compressor, sweep
    from promptcomp.comparing.comparison import compare
    from promptcomp.errors import ConfigError
    from promptcomp.prompts.compressing import compress
    from promptcomp.prompts.prompt_files import CompressedPrompt, load_prompt
    from promptcomp.run.finished import Run, load_run
else:
    _HOMES = {
        "api": ("TextCompressor", "distill", "evaluate", "fit", "load_compressor", "sweep"),
        "comparing.comparison": ("compare",),
        "errors": ("ConfigError",),
        "prompts.compressing": ("compress",),
        "prompts.prompt_files": ("CompressedPrompt", "load_prompt"),
        "run.finished": ("Run", "load_run"),
    }

    def __getattr__(name: str) -> object:
        """Import one of `__all__` (PEP 562)."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"promptcomp.{home}"), name)
        raise AttributeError(f"module 'promptcomp' has no attribute {name!r}")
