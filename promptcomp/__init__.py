"""promptcomp: train prompt compressors, measure what they keep beside their bounds, ship the file.

    import promptcomp

    prompt = promptcomp.compress("runs/gist", text="Translate into French.")
    print(prompt.generate("good morning"))

These names are imported when they are first used, so that `import promptcomp` costs nothing.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["CompressedPrompt", "ConfigError", "__version__", "compress", "load_prompt"]

if TYPE_CHECKING:
    from promptcomp.errors import ConfigError
    from promptcomp.prompts import CompressedPrompt, compress, load_prompt
else:

    def __getattr__(name: str) -> object:
        """Import one of `__all__` (PEP 562)."""
        if name == "ConfigError":
            from promptcomp.errors import ConfigError

            return ConfigError
        if name in __all__:
            from promptcomp import prompts

            return getattr(prompts, name)
        raise AttributeError(f"module 'promptcomp' has no attribute {name!r}")
