"""Compressed prompts in vLLM: keys and values from a registry of files, filled into a request's first pages.

    vllm serve MODEL --middleware promptcomp.vllm_connector.PromptGate --kv-transfer-config '{"kv_connector":
      "PromptConnector", "kv_connector_module_path": "promptcomp.vllm_connector", "kv_role": "kv_consumer",
      "kv_connector_extra_config": {"registry": "FOLDER"}}'

The registry is a folder of `NAME.safetensors`, the files with keys and values of `promptcomp compress` and `distill`.
A request names one with `"kv_transfer_params": {"promptcomp": "NAME"}`. Three parts:

* `PromptGate` (`gate.py`), in front of the HTTP server: refuses with a status, writes the query by the prompt's own
  template, and puts as many placeholder tokens in front of it as the prompt has slots;
* `PromptConnector` (`pages.py`) beside the scheduler: tells which positions come from a file, and makes the file's hash
  a part of the request's cache salt, so that no prefix of one prompt is found by another;
* `PromptConnector` in the worker: reads the file, checks its hash, turns the keys and writes the pages.

It lives in vLLM's environment, where other versions of transformers do (`pip install --no-deps promptcomp`): of
promptcomp it imports what needs torch, safetensors, pydantic and PyYAML alone.
"""

from importlib import import_module


def __getattr__(name: str) -> object:
    """The two classes that vLLM asks for; only one of them can be imported without vLLM."""
    home = {"PromptConnector": "pages", "PromptGate": "gate"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
