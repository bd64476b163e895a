"""Gisting on a Llama: logits, loss, gradients, caches and greedy answers of the original code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcomp.batch import Context
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.gist import Gist
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.memory import KVCache
from tests.parity.golden_gist import GIST, Arrays, Row, batch_of, llama_rows, prefix_of, split, tiny_llama

TOLERANCE = {"rtol": 0.0, "atol": 5e-5}
VISIBLE = {"gist": "gist", "neg_control": "none", "pos_control": "all"}


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return Arrays("llama_tiny")


def golden_nll(arrays: Arrays, condition: str) -> list[Tensor]:
    """The reference's negative log likelihood of every target token, row by row."""
    log_probs = arrays[f"train/{condition}/logits"][:, :-1].log_softmax(-1)
    labels = arrays["train/labels"][:, 1:]
    return [-row[wanted != -100, wanted[wanted != -100]] for row, wanted in zip(log_probs, labels, strict=True)]


def nll_of(lm: LanguageModel, rows: list[Row], memory: object, count: int) -> list[Tensor]:
    logits = lm(memory, batch_of(rows))  # type: ignore[arg-type]
    losses = -logits.log_probs()
    return [losses[logits.target_of == i] for i in range(count)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("condition", list(VISIBLE))
@torch.no_grad()
def test_training_losses(condition: str, attention: str, arrays: Arrays) -> None:
    """All rows in one batch: 2, 2, 2, 0, 5 and 1 gist tokens. Row 1 has nothing between gist and target, and what
    follows the gist token itself is no query of ours, so its first target token is left to the next test."""
    lm, rows = tiny_llama(attention), llama_rows(arrays)
    found = nll_of(lm, rows, prefix_of(lm, rows, VISIBLE[condition]), len(rows))
    expected = golden_nll(arrays, condition)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(ours, theirs[1:] if number == 1 else theirs, **TOLERANCE)


@pytest.mark.parametrize("condition", list(VISIBLE))
@torch.no_grad()
def test_logits(condition: str, arrays: Arrays) -> None:
    """Every position behind the prefix."""
    lm, rows = tiny_llama(), llama_rows(arrays)
    ends = [len(row.query) + len(row.target) for row in rows]
    logits = lm(prefix_of(lm, rows, VISIBLE[condition]), batch_of(rows), "all").values
    queries = logits[: sum(len(row.query) for row in rows)].split([len(row.query) for row in rows])
    targets = logits[sum(len(row.query) for row in rows) :].split([len(row.target) for row in rows])
    for row, (query, target) in enumerate(zip(queries, targets, strict=True)):
        golden = arrays[f"train/{condition}/logits"][row, -ends[row] :]
        torch.testing.assert_close(torch.cat([query, target]), golden, **TOLERANCE)


@torch.no_grad()
def test_no_prompt_and_full_prompt_are_the_controls(arrays: Arrays) -> None:
    """The negative control equals reading the query alone, as rotary positions are relative."""
    lm, rows = tiny_llama(), llama_rows(arrays)
    alone = nll_of(lm, rows, None, len(rows))
    for number, theirs in enumerate(golden_nll(arrays, "neg_control")):
        torch.testing.assert_close(alone[number], theirs[1:] if number == 1 else theirs, **TOLERANCE)
    whole = [Row((), row.prefix + row.query, row.target) for row in rows]
    for ours, theirs in zip(nll_of(lm, whole, None, len(rows)), golden_nll(arrays, "pos_control"), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_gradients_through_the_method(arrays: Arrays) -> None:
    """Rows of one k through the Gist module; their loss and gradients add up to the reference's mixed batch."""
    lm, rows = tiny_llama(), llama_rows(arrays)
    lm.requires_grad_(True)
    total = torch.zeros(())
    embeddings = []
    for k in (1, 2, 5):
        module = Gist(GistConfig(num_slots=k), lm, OptimConfig(), max_steps=1, seed=0)
        module.configure_model()
        with torch.no_grad():
            module.gist.copy_(lm.embed(torch.tensor([GIST])))
        embeddings.append(module.gist)
        (term,) = module.losses(batch_of([row for row in rows if row.num_gists == k], contexts=True))
        total = total + term.total
    without = [row for row in rows if not row.num_gists]
    total = total + torch.cat(nll_of(lm, without, None, 1)).sum()
    first = Row((), rows[1].prefix, rows[1].target[:1])  # predicted by the gist token itself, which sees the prompt
    total = total + torch.cat(nll_of(lm, [first], None, 1)).sum()
    loss = total / sum(len(row.target) for row in rows)
    torch.testing.assert_close(loss, arrays["train/gist/loss"], rtol=0, atol=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in lm.hf.named_parameters()}
    prefix = "train/gist/grad/"
    names = [name.removeprefix(prefix) for name in arrays.names if name.startswith(prefix)]
    assert len(names) == 5
    for name in names:
        found = gradients[name]
        assert found is not None
        if name == "model.embed_tokens.weight":
            found[GIST] += torch.stack([each.grad for each in embeddings if each.grad is not None]).sum((0, 1))
        torch.testing.assert_close(found, arrays[prefix + name], rtol=1e-4, atol=2e-6)


def cached(name: str, arrays: Arrays) -> tuple[Row, int]:
    ids, mask = arrays[f"cache/{name}/full_input_ids"][0], arrays[f"cache/{name}/full_attention_mask"][0]
    row = split(ids[mask.bool()].tolist(), (0,))
    return row, int((mask == 0).sum())


@pytest.mark.parametrize("name", ["k1", "k2", "k2_leftpad3"])
@torch.no_grad()
def test_caches(name: str, arrays: Arrays) -> None:
    lm = tiny_llama()
    row, padding = cached(name, arrays)
    module = Gist(GistConfig(num_slots=row.num_gists), lm, OptimConfig(), max_steps=1, seed=0)
    module.configure_model()
    module.gist.copy_(lm.embed(torch.tensor([GIST])))
    batch = batch_of([row], contexts=True)
    memory = module.eval().compress(batch.context)
    assert isinstance(memory, KVCache)
    assert int(memory.next_position) == int(arrays[f"cache/{name}/gist_offset"]) + row.num_gists - padding
    if not padding:  # the reference counts padding, which turns its keys
        keys, values = (torch.stack(list(kind)) for kind in zip(*memory.layers, strict=True))
        torch.testing.assert_close(keys, arrays[f"cache/{name}/keys"], rtol=0, atol=1e-5)
        torch.testing.assert_close(values, arrays[f"cache/{name}/values"], rtol=0, atol=1e-5)
    logits = lm(memory, batch, "all").values[: len(row.query)]
    torch.testing.assert_close(logits, arrays[f"cache/{name}/cached_logits"][0], **TOLERANCE)
    torch.testing.assert_close(logits, arrays[f"cache/{name}/uncached_logits"][0, -len(row.query) :], **TOLERANCE)
    answer = lm.generate(memory, batch, max_new_tokens=8, stop_ids=(2,))
    assert answer == [until_end(arrays[f"cache/{name}/generated_cached"][0])]


@torch.no_grad()
def test_whole_prompt_cache(arrays: Arrays) -> None:
    lm = tiny_llama()
    row, _ = cached("k2", arrays)
    ids = torch.tensor([row.prefix])
    memory = lm.encode(Context(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1)))
    assert isinstance(memory, KVCache)
    keys, values = (torch.stack(list(kind)) for kind in zip(*memory.layers, strict=True))
    torch.testing.assert_close(keys, arrays["cache_all/k2/keys"], rtol=0, atol=1e-5)
    torch.testing.assert_close(values, arrays["cache_all/k2/values"], rtol=0, atol=1e-5)
    logits = lm(memory, batch_of([row]), "all").values[: len(row.query)]
    torch.testing.assert_close(logits, arrays["cache_all/k2/cached_logits"][0], **TOLERANCE)


@pytest.mark.parametrize("condition", list(VISIBLE))
@torch.no_grad()
def test_generation(condition: str, arrays: Arrays) -> None:
    """A mixed batch. Row 1 ends on its gist token: a query of ours has a token, and there the reference leaks."""
    lm = tiny_llama()
    prompts, masks = arrays["generate/prompt_input_ids"], arrays["generate/prompt_attention_mask"].bool()
    rows = [split(ids[mask].tolist(), (0,)) for ids, mask in zip(prompts, masks, strict=True)]
    chosen = [row for number, row in enumerate(rows) if number != 1]
    expected = [until_end(row) for row in arrays[f"generate/{condition}/new_tokens"]]
    del expected[1]
    prefix = prefix_of(lm, chosen, VISIBLE[condition])
    assert lm.generate(prefix, batch_of(chosen), max_new_tokens=8, stop_ids=(2,)) == expected
    if condition == "gist":
        memory = lm.read(prefix)
        assert lm.generate(memory, batch_of(chosen), max_new_tokens=8, stop_ids=(2,)) == expected


def until_end(tokens: Tensor, end: int = 2) -> list[int]:
    found = tokens.tolist()
    return found[: found.index(end)] if end in found else found
