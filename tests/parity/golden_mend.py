"""Golden MEND cases as our models and batches (shared by the parity tests)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel, TextEncoder
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.mend import Mend
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.memory import SoftPrompt

DATA = Path(__file__).parent / "data" / "mend"


class Case:
    """One case: its arrays and its recorded numbers."""

    def __init__(self, name: str, folder: Path = DATA) -> None:
        self.name = name
        self.arrays = np.load(folder / "forward_cases.npz")
        cases = json.loads((folder / "forward_cases.json").read_text(encoding="utf-8"))["cases"]
        self.numbers: dict[str, Any] = cases.get(name, {})

    def __getitem__(self, key: str) -> Tensor:
        array = torch.from_numpy(self.arrays[f"{self.name}/{key}"])
        return array.long() if not array.is_floating_point() else array.double()

    def rows(self, ids: str, mask: str) -> list[tuple[int, ...]]:
        """The masked tokens of each row."""
        return [tuple(row[keep.bool()].tolist()) for row, keep in zip(self[ids], self[mask], strict=True)]

    def pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Query and answer of each row of `input_ids`."""
        typed = self["in/token_type_ids"].bool()
        real = self["in/attention_mask"].bool()
        ids = self["in/input_ids"]
        return [
            (tuple(row[keep & ~answer].tolist()), tuple(row[keep & answer].tolist()))
            for row, keep, answer in zip(ids, real, typed, strict=True)
        ]

    def batch(self) -> Batch:
        """A training case: one query and one target for each row of demonstrations."""
        demos = self.rows("in/demo_ids", "in/demo_attention_mask")
        teacher = self.rows("in/teacher_input_ids", "in/teacher_demo_token_type_ids")
        return collate(
            [
                EncodedContext(demo, (EncodedQuery(query, (EncodedTarget(answer),)),), i, read)
                for i, (demo, read, (query, answer)) in enumerate(zip(demos, teacher, self.pairs(), strict=True))
            ],
        )

    def option_batch(self, tasks: list[int] | None = None) -> Batch:
        """A scoring case: the real options of each example share its query."""
        pairs = self.pairs()
        real = self["in/real_num_class_mask"].bool()
        width = real.shape[1]
        contexts = []
        for i, demo in enumerate(self.rows("in/demo_ids", "in/demo_attention_mask")):
            options = [pairs[i * width + c] for c in range(width) if real[i, c]]
            targets = tuple(EncodedTarget(answer, c) for c, (_, answer) in enumerate(options))
            task = i if tasks is None else tasks[i]
            contexts.append(EncodedContext(demo, (EncodedQuery(options[0][0], targets, i),), task))
        return collate(contexts)


def gpt2(weights: dict[str, Tensor], width: int, layers: int) -> GPT2LMHeadModel:
    """A GPT-2 without dropout with these tensors."""
    config = GPT2Config(
        vocab_size=384, n_positions=192, n_embd=width, n_layer=layers, n_head=4, bos_token_id=None, eos_token_id=None
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = GPT2LMHeadModel(config)
    model.transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith(("init_", "adap_"))})
    return model.eval()


class GoldenMend(Mend):
    """MEND with golden weights: distiller, slots and projection."""

    golden: dict[str, Tensor]
    encoder: tuple[TextEncoder]
    """In a tuple, so that it is not registered under a second name."""

    def _open_distiller(self) -> TextEncoder:
        return self.encoder[0]

    def build(self) -> None:
        super().build()
        with torch.no_grad():
            self.slots.copy_(self.golden["init_prompt_weight"])
            if "adap_pooler.dense.weight" in self.golden:
                self.projection[0].weight.copy_(self.golden["adap_pooler.dense.weight"])
                self.projection[0].bias.copy_(self.golden["adap_pooler.dense.bias"])


class RawPositions(GoldenMend):
    """As the original counts positions: demonstrations padded on the right, slots after the padding."""

    def compress(self, context: Context) -> SoftPrompt:
        length = context.mask.sum(-1, keepdim=True)
        width = context.ids.shape[1]
        column = torch.arange(width)[None] + (width - length)
        mask = column < width
        ids = context.ids.gather(1, column.clamp(max=width - 1)) * mask
        rows, num_slots = ids.shape[0], self.slots.shape[0]
        embeds = torch.cat([self.distiller.embed(ids), self.slots.expand(rows, -1, -1)], 1)
        whole = torch.cat([mask, mask.new_ones(rows, num_slots)], 1)
        plain = torch.arange(width + num_slots).expand(rows, -1)
        vectors = self.projection(self.distiller(embeds, whole, plain)[:, -num_slots:])
        return SoftPrompt(vectors, mask.new_ones(rows, num_slots))


def make(model: str, folder: Path, config: MendConfig, kind: type[GoldenMend] = GoldenMend) -> GoldenMend:
    """Model "A" (projected) or "B" (same widths) of the golden collection."""
    file = {"A": "weights_A_pooled.safetensors", "B": "weights_B_samedim_vocabinit.safetensors"}[model]
    tensors = load_file(folder / file)
    llm = {k.removeprefix("llm.transformer."): v for k, v in tensors.items() if k.startswith("llm.")}
    own = {k.removeprefix("distiller."): v for k, v in tensors.items() if k.startswith("distiller.")}
    module = kind(
        config,
        LanguageModel.from_parts(gpt2(llm, 48, 3)),
        OptimConfig(lr=1e-3, schedule="constant"),
        max_steps=6,
        seed=0,
    )
    module.golden = own
    module.encoder = (LanguageModel.from_parts(gpt2(own, {"A": 32, "B": 48}[model], 2)).text_encoder(),)
    module.configure_model()
    return module.double()


GRADIENT_NAMES = {
    "init_prompt_weight": "slots",
    "adap_pooler.dense.weight": "projection.0.weight",
    "adap_pooler.dense.bias": "projection.0.bias",
}


def our_name(golden_name: str) -> str:
    """The name of a golden distiller tensor in our module."""
    return GRADIENT_NAMES.get(golden_name, f"distiller.body.{golden_name}")
