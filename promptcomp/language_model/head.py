"""Logits by the model's own code: its forward, with the body's output given instead of computed.

Models differ in what they do behind the last block: a transform in front of the output layer, factors and soft caps
behind it, under many names. So nothing of it is repeated here, and logits are made only where they are wanted.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from promptcomp.config import ConfigError
from promptcomp.language_model.parts import unsupported


def body_name(hf: PreTrainedModel) -> str:
    """The name of the child of a causal LM that makes the final hidden states.

    Raises:
        ConfigError: there is no such child.
    """
    if hf.base_model_prefix in hf._modules:
        return hf.base_model_prefix
    models = [name for name, child in hf.named_children() if isinstance(child, PreTrainedModel)]
    if len(models) != 1:
        raise ConfigError(unsupported(hf, "their head cannot be told from their body"))
    return models[0]


def logits_of(hf: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [P, V] of final hidden states [P, D] (T5: of its decoder's)."""
    if hf.config.is_encoder_decoder:
        view = _with_given(hf, "decoder", hidden[None])
        output = type(hf).forward(view, encoder_outputs=(hidden,), decoder_inputs_embeds=hidden[None])
    else:
        view = _with_given(hf, body_name(hf), hidden[None])
        output = type(hf).forward(view, inputs_embeds=hidden[None])
    return output.logits[0]


class _Given:
    """Stands where the body stands and returns what it is said to have found."""

    def __init__(self, body: Any, hidden: Tensor) -> None:
        self._body, self._hidden = body, hidden

    def __call__(self, *args: object, **kwargs: object) -> _Output:
        return _Output(last_hidden_state=self._hidden)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._body, name)
        return self if isinstance(value, PreTrainedModel) else value  # OPT calls the decoder inside its body


class _Output(BaseModelOutput):
    """The output of a body that has kept nothing but the last hidden states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _with_given(hf: PreTrainedModel, body: str, hidden: Tensor) -> PreTrainedModel:
    """The same model, sharing all it has, with another body (`hf` itself is left as it is)."""
    view = object.__new__(type(hf))
    view.__dict__.update(hf.__dict__)
    view.__dict__["_modules"] = {**hf._modules, body: _Given(hf._modules[body], hidden)}
    return cast(PreTrainedModel, view)
