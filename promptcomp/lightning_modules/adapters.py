"""Which weights of the LM itself a method trains: all, LoRA adapters, or none.

LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, through peft (the optional extra "lora"). The adapters are put
into the Hugging Face model in place, so that everything else goes on working with the same object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from promptcomp.config import ConfigError
from promptcomp.language_model import LanguageModel, TextEncoder
from promptcomp.lightning_modules.method_config import LoraConfig, check_peft

if TYPE_CHECKING:
    import peft
    from transformers import PreTrainedModel


def add_lora(lm: LanguageModel | TextEncoder, config: LoraConfig, *, skeleton: bool = False) -> None:
    """Put adapters into the LM; they alone are trainable afterwards, in float32 beside half-precision weights.

    `skeleton`: shapes only, on the meta device.

    Raises:
        ConfigError: peft is not installed, or `targets` names no layer of this LM.
    """
    settings = lora_settings(lm, config)
    import peft

    holder = nn.Module()  # without the configuration by which peft takes linear layers of mixtures for fused experts
    holder.lm = lm.hf
    peft.inject_adapter_in_model(settings, holder, low_cpu_mem_usage=skeleton)
    # peft gives them the type of the matrix that they stand beside; in a skeleton, the default type
    wide = torch.float32 if lm.hf.dtype.itemsize == 2 else lm.hf.dtype
    for name, parameter in lm.hf.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(wide)


def lora_settings(lm: LanguageModel | TextEncoder, config: LoraConfig) -> peft.LoraConfig:
    """The adapters as peft describes them.

    Raises:
        ConfigError: peft is not installed, `targets` names no layer of this LM, or it has adapters already.
    """
    check_peft()
    import peft

    if any(hasattr(each, "lora_A") for each in lm.hf.modules()):
        raise ConfigError(
            "the LM has adapters already (of peft, or of another compressor with train=lora): merge them, or load it "
            "anew"
        )
    modules, body = dict(lm.hf.named_modules()), {*lm.hf.base_model.modules()} - {lm.hf.get_output_embeddings()}
    linear = {name: each for name, each in modules.items() if isinstance(each, nn.Linear | Conv1D) and each in body}
    # a router of experts may be made of one, and gives more than its product
    layers = {name: each for name, each in linear.items() if "Router" not in type(each).__name__}
    known = {_last(name) for name in layers}
    if unknown := [name for name in config.targets if name not in known]:
        listed = ", ".join(sorted(known))
        raise ConfigError(f"method.lora.targets: the LM has no linear layer {unknown[0]!r}; it has {listed}")
    names = set(config.targets) or known
    wanted = sorted(name for name in layers if _last(name) in names)
    found = {name for name in modules if _last(name) in names}
    # Where the short names would also match something else, each layer is named in full.
    chosen = sorted(names) if found == set(wanted) else wanted
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft says int and divides by the rank
        lora_dropout=config.dropout,
        target_modules=chosen,
        fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in wanted),
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def adapted(hf: PreTrainedModel) -> str:
    """What has adapters, and which matrices of the body have none, in a sentence; empty for a model without any."""
    beside = {name for name, module in hf.named_modules() if hasattr(module, "lora_A")}
    if not beside:
        return ""
    head = hf.get_output_embeddings()
    tables = {id(module.weight) for module in hf.modules() if isinstance(module, nn.Embedding) or module is head}
    body = {id(parameter) for parameter in hf.base_model.parameters()} - tables
    left: dict[str, int] = {}
    for name, parameter in hf.named_parameters():
        owner = name.partition(".lora_")[0].partition(".base_layer")[0]
        if parameter.ndim > 1 and id(parameter) in body and owner not in beside:
            short = ".".join(name.removesuffix(".weight").split(".")[-2:])
            left[short] = left.get(short, 0) + parameter.numel()
    said = f"LoRA: adapters beside {', '.join(sorted({_last(name) for name in beside}))}"
    if not left:
        return f"{said}: every linear layer but the head"
    share = sum(left.values()) / sum(p.numel() for name, p in hf.named_parameters() if ".lora_" not in name)
    return f"{said}; none beside {', '.join(sorted(left))} ({share:.0%} of the weights)"


@contextmanager
def without_lora(lm: LanguageModel) -> Iterator[None]:
    """The LM as it was before its adapters, for the time of the block."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(lm.hf, 0.0):
        yield
