"""A test of an LM: do packed, padded rows give what plain transformers gives for one row at a time?

Families differ in ways that no list keeps up with (positions from columns, states carried from token to token, biases
made of masks), so an LM is tried with a few tokens: two contexts of different lengths, queries and targets that share
rows, read in one pass, through a cache and as vectors, and continued token by token. What narrows the view of a layer
(a sliding window of 4,096 tokens) is narrowed to a few tokens for that moment, so that it matters.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.distributed.tensor import DTensor

import promptcomp
from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.documents import read_json
from promptcomp.files import cache_folder, write_atomic
from promptcomp.language_model import generation
from promptcomp.language_model.attention import AttentionPattern
from promptcomp.language_model.parts import lent, refusing, token_table, unsupported
from promptcomp.memory import SoftPrompt

if TYPE_CHECKING:
    from promptcomp.language_model.model import LanguageModel

NARROWED = ("sliding_window", "attention_chunk_size", "index_topk", "floor_scale")
"""Entries of architectures, and attributes of layers, that say from how many tokens on a layer does something else."""
_NARROW = 3
_TOLERANCE = {torch.float64: 5e-6, torch.float32: 3e-4, torch.float16: 0.05, torch.bfloat16: 0.1}
"""Most that logits may differ, as a part of their spread over the vocabulary. In half precision the root mean square
counts, as one router of experts may tip over."""
_SMALL, _DOUBTFUL = 20_000_000, 1e-5
"""float32 models with fewer parameters are compared in float64 where they differ by more than that: rounding or not?"""
_FOREST = ((4, ((2, (2, 1)), (1, (3,)))), (1, ((2, (2,)),)))
"""Lengths of contexts with their queries with their targets."""
_LONGEST = 10
_FORMAT = 3
"""Raise it when what is compared changes."""
_verdicts: dict[str, str | None] = {}


class NoScores(ConfigError):
    """The weights give scores that are no numbers, whatever reads them."""


def verify(lm: LanguageModel, weights: str | None = None) -> None:
    """Compare an LM with plain transformers, once for each architecture and version (and `weights`, if named).

    Shapes without weights, shards, and windows too small for the comparison are passed over.

    Args:
        lm: the model, in whatever mode; it is left as it was.
        weights: which weights these are: the verdict is then kept in a file; None: in this process alone.

    Raises:
        NoScores: the model's own scores are NaN or infinite; such a verdict is of these weights and is not kept.
        ConfigError: the family cannot be read packed and padded; says which family and what differs.
    """
    without_numbers = any(isinstance(each, DTensor) or each.is_meta for each in lm.hf.parameters())
    if without_numbers or (lm.window is not None and lm.window < _LONGEST):
        return
    key = _key(lm, weights)
    if key not in _verdicts:
        _verdicts[key] = _verdict(lm) if weights is None else _kept_verdict(lm, key)
    if (verdict := _verdicts[key]) is not None:
        raise ConfigError(verdict)


@torch.no_grad()
def check_both_ways(lm: LanguageModel) -> None:
    """Make sure that a decoder-only LM's tokens see what follows where the mask lets them; leaves it in eval mode.

    Raises:
        ConfigError: the LM's own code hides what follows, whatever mask it is given.
    """
    ids = torch.tensor([[0, 0], [0, 1]], device=token_table(lm.hf).weight.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    states = lm.eval().states(lm.prefix(Context(ids, mask, ids[:, 0]), both_ways=True))
    if torch.equal(states[0, -2], states[1, -2]):
        kind = lm.hf.config.model_type
        raise ConfigError(f"method.attention = 'bidirectional': models of type {kind!r} read one way; use causal")


def _key(lm: LanguageModel, weights: str | None) -> str:
    versions = (_FORMAT, promptcomp.__version__, transformers.__version__, torch.__version__)
    made_of = (type(lm.hf).__qualname__, lm.hf.config.to_json_string(use_diff=False), str(lm.hf.dtype))
    starts = {name: each.detach().flatten()[:16] for name, each in lm.hf.named_parameters()}
    # as if just made of zeros or ones: they may hide what they do
    constant = [name for name, start in starts.items() if bool((start == start[:1]).all())]
    read_by = (lm.hf.config._attn_implementation, lm.query_in_encoder, lm.bos_id)
    return hashlib.sha256(json.dumps([*versions, *made_of, *read_by, constant, weights]).encode()).hexdigest()


def _kept_verdict(lm: LanguageModel, key: str) -> str | None:
    """The verdict of an earlier process, or ours, which is left for later ones where the folder can be written."""
    file = cache_folder() / "verified" / f"{key}.json"
    with contextlib.suppress(ConfigError, KeyError, TypeError):
        kept = read_json(file, "verdict on a model")["refused"]
        return None if kept is None else str(kept)
    verdict = _verdict(lm)
    with contextlib.suppress(ConfigError, OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({"model": lm.hf.config.model_type, "refused": verdict}))
    return verdict


def _verdict(lm: LanguageModel) -> str | None:
    """Why the family is refused; None: it is right.

    Raises:
        NoScores: see `verify`.
    """
    try:
        with refusing(lm.hf, "they cannot read packed and padded rows"):
            found = _compare(lm)
    except NoScores:
        raise
    except ConfigError as error:
        return str(error)
    is_small = sum(each.numel() for each in lm.hf.parameters()) < _SMALL
    if lm.hf.dtype == torch.float32 and max(found.values()) > _DOUBTFUL and is_small:
        with contextlib.suppress(Exception):  # some models mix types when they should not
            twin, hf = copy.copy(lm), copy.deepcopy(lm.hf).double()
            twin._modules = {**lm._modules, "hf": hf}
            twin.text_config = hf.config if lm.text_config is lm.hf.config else hf.config.get_text_config()
            found, lm = _compare(twin), twin
    worst = max(found, key=lambda way: found[way])
    if found[worst] <= _TOLERANCE[lm.hf.dtype]:
        return None
    return unsupported(
        lm.hf,
        "packed and padded rows do not give the scores of one row at a time "
        f"(logits {worst} differ by {found[worst]:.0e} of their spread)",
    )


def _compare(lm: LanguageModel) -> dict[str, float]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), lent(lm.hf), _narrowed(lm):
        return _differences(lm)


@contextlib.contextmanager
def _narrowed(lm: LanguageModel) -> Iterator[None]:
    """Without dropout, with windows of a few tokens, and with sdpa for flex_attention, which takes the same masks."""
    config, pattern = lm.text_config, lm.pattern
    implementation = lm.hf.config._attn_implementation
    owners: list[Any] = [config, *lm.hf.modules()]
    found = [(owner, name, vars(owner)[name]) for owner in owners for name in NARROWED if name in vars(owner)]
    found = [each for each in found if isinstance(each[2], int) and each[2] > _NARROW]
    try:
        lm.hf.eval()
        for owner, name, _ in found:
            setattr(owner, name, _NARROW)
        if implementation == "flex_attention":
            lm.hf.set_attn_implementation("sdpa")
        if pattern is not None:
            lm.pattern = AttentionPattern(config, lm.hf.config._attn_implementation)
        yield
    finally:
        for owner, name, value in found:
            setattr(owner, name, value)
        if implementation == "flex_attention":
            lm.hf.set_attn_implementation(implementation)
        lm.pattern = pattern


def _differences(lm: LanguageModel) -> dict[str, float]:
    """Differences of the logits from the plain ones, as a part of the spread of these, for each way of reading."""
    batch = collate(_contexts(lm)).to(lm.hf.device)
    plain = [_plain(lm, batch, target) for target in range(len(batch.query_of))]
    scores = torch.cat(plain)
    if not (scores < torch.inf).all():  # nor NaN; -inf hides words
        raise NoScores(_why_no_scores(lm))
    spread = scores.std(-1).mean()
    if not spread.isfinite():
        return {"": 0.0}
    embeds = lm.embed(batch.context.ids)
    vectors = (embeds + embeds.roll(1, -1)) / 2  # what no token has
    behind_vectors = {target: _plain(lm, batch, target, vectors) for target in (0, len(plain) - 1)}
    cached = lm.encode(batch.context)
    every = dict(enumerate(plain))
    ways = {
        "in one pass": (lm.whole_prompt(batch.context), every),
        "behind a cache": (cached, every),
        "behind vectors": (SoftPrompt(vectors, batch.context.mask), behind_vectors),
    }
    found = {}
    for way, (memory, wanted) in ways.items():
        logits = lm(memory, batch)
        ours = [logits.values[logits.predictor[logits.target_of == target]] for target in wanted]
        before = torch.cat([rows[:-1] for rows in wanted.values()])
        found[way] = _distance(lm, torch.cat(ours), before) / spread
    first = [batch.query_of.tolist().index(query) for query in range(len(batch.query_ids))]
    steps = generation.forced(lm, cached, batch, batch.target_ids[first, 0])
    found["of generation"] = _distance(lm, steps, torch.stack([plain[target][:2] for target in first])) / spread
    return {way: float(distance) for way, distance in found.items()}


def _why_no_scores(lm: LanguageModel) -> str:
    dtype = str(lm.hf.dtype).removeprefix("torch.")
    bad = next((name for name, each in lm.hf.named_parameters() if not each.isfinite().all()), None)
    cause = f"numbers on the way exceed {dtype}" if bad is None else f"its weight {bad} holds NaN or infinity"
    what = "open it with lm.dtype=bfloat16 or float32" if dtype == "float16" else "give weights without such numbers"
    return f"{lm.hf.name_or_path or 'the model'}: its scores in {dtype} are NaN or infinite ({cause}); {what}"


def _distance(lm: LanguageModel, ours: Tensor, plain: Tensor) -> Tensor:
    difference = (ours.double() - plain).nan_to_num(torch.inf, torch.inf, torch.inf).abs()
    return difference.max() if lm.hf.dtype.itemsize > 2 else difference.square().mean().sqrt()


def _contexts(lm: LanguageModel) -> list[EncodedContext]:
    """Contexts with queries and targets of words that mean nothing special to the model."""
    settings = lm.hf.config.to_dict() | lm.text_config.to_dict()
    named = [value for name, value in settings.items() if name.endswith(("_token_id", "_token_index"))]
    special = {each for value in named for each in (value if isinstance(value, list) else [value])}
    words = [i for i in range(min(lm.vocab_size, settings.get("vocab_size") or lm.vocab_size)) if i not in special]
    step, taken = max(1, len(words) // 41), 0

    def some(count: int) -> tuple[int, ...]:
        nonlocal taken
        taken += count
        return tuple(words[(step * i) % len(words)] for i in range(taken - count, taken))

    return [
        EncodedContext(
            some(context),
            tuple(
                EncodedQuery(some(query), tuple(EncodedTarget(some(target)) for target in targets))
                for query, targets in queries
            ),
        )
        for context, queries in _FOREST
    ]


def _plain(lm: LanguageModel, batch: Batch, target: int, vectors: Tensor | None = None) -> Tensor:
    """Logits [T + 1, V] before the tokens of a target and behind the last one, by one row of plain transformers.

    `vectors` [G, C, D] stand in place of the embeddings of the contexts' tokens.
    """
    query = int(batch.query_of[target])
    context = int(batch.context_of[query])
    seen = batch.context.mask[context]
    ids = batch.context.ids[context][seen]
    ask = batch.query_ids[query][batch.query_mask[query]]
    answer = batch.target_ids[target][batch.target_mask[target]]
    prompt = lm.embed(ids) if vectors is None else vectors[context][seen]
    hf: Any = lm.hf
    bos = answer.new_tensor([] if lm.bos_id is None else [lm.bos_id])
    if lm.family == "decoder" and vectors is None:
        logits = hf(input_ids=torch.cat([bos, ids, ask, answer])[None], use_cache=False).logits
    elif lm.family == "decoder":
        row = torch.cat([lm.embed(bos), prompt, lm.embed(torch.cat([ask, answer]))])[None]
        logits = hf(inputs_embeds=row, use_cache=False).logits
    else:
        start = answer.new_tensor([lm.start_id])
        encoder, decoder = ([prompt, lm.embed(ask)], [start]) if lm.query_in_encoder else ([prompt], [start, ask])
        ids = torch.cat([*decoder, answer])[None]
        logits = hf(inputs_embeds=torch.cat(encoder)[None], decoder_input_ids=ids, use_cache=False).logits
    return logits[0, -1 - len(answer) :].double()
