"""Gisting on a T5 (v1.1): logits, loss, gradients, encoder caches and greedy answers of the original code.

Left out are its two slips: decoder rows that attend to padding (negative control) and rows without a gist token, where
the decoder attends to everything alike; the latter is rebuilt for the gradients, as they are of the whole batch.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.gist import Gist
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.memory import EncoderStates
from tests.parity.golden_gist import GIST, Arrays, Row, batch_of, prefix_of, split, t5_rows, tiny_t5

TOLERANCE = {"rtol": 0.0, "atol": 5e-5}
WITHOUT_GIST = 3


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return Arrays("t5_tiny_v11")


def logits_of(lm: LanguageModel, rows: list[Row], memory: object) -> list[Tensor]:
    """Logits that predict the target tokens, row by row."""
    logits = lm(memory, batch_of(rows))  # type: ignore[arg-type]
    return [logits.values[logits.predictor[logits.target_of == i]] for i in range(len(rows))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_gist_logits(attention: str, arrays: Arrays) -> None:
    """All rows in one batch: 2, 2, 2, 0, 5 and 1 gist tokens."""
    lm, rows = tiny_t5(attention), t5_rows(arrays)
    for number, found in enumerate(logits_of(lm, rows, prefix_of(lm, rows))):
        condition = "pos_control" if number == WITHOUT_GIST else "gist"  # without a gist token all is query
        golden = arrays[f"train/{condition}/logits"][number, : len(found)]
        torch.testing.assert_close(found, golden, **TOLERANCE)


@torch.no_grad()
def test_control_logits(arrays: Arrays) -> None:
    lm, rows = tiny_t5(), t5_rows(arrays)
    alone, hidden = logits_of(lm, rows, None), logits_of(lm, rows, prefix_of(lm, rows, "none"))
    for number in (0, 2):  # rows without padding
        golden = arrays["train/neg_control/logits"][number, : len(alone[number])]
        torch.testing.assert_close(alone[number], golden, **TOLERANCE)
        torch.testing.assert_close(hidden[number], golden, **TOLERANCE)
    whole = [Row((), row.prefix + row.query, row.target) for row in rows]
    for number, found in enumerate(logits_of(lm, whole, None)):
        torch.testing.assert_close(found, arrays["train/pos_control/logits"][number, : len(found)], **TOLERANCE)


def test_gradients_through_the_method(arrays: Arrays) -> None:
    """Rows of one k through the Gist module; their loss and gradients add up to the reference's mixed batch."""
    lm, rows = tiny_t5("eager"), t5_rows(arrays)
    lm.requires_grad_(True)
    total = row_without_gist(lm, arrays)
    torch.testing.assert_close(total, arrays["train/gist/row_loss_sum"][WITHOUT_GIST], rtol=0, atol=1e-4)
    embeddings = []
    for k in (1, 2, 5):
        module = Gist(GistConfig(num_slots=k), lm, OptimConfig(), max_steps=1, seed=0)
        module.configure_model()
        with torch.no_grad():
            module.gist.copy_(lm.embed(torch.tensor([GIST])))
        embeddings.append(module.gist)
        (term,) = module.losses(batch_of([row for row in rows if row.num_gists == k], contexts=True))
        total = total + term.total
    loss = total / sum(len(row.target) for row in rows)
    torch.testing.assert_close(loss, arrays["train/gist/loss"], rtol=0, atol=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in lm.hf.named_parameters()}
    prefix = "train/gist/grad/"
    names = [name.removeprefix(prefix) for name in arrays.names if name.startswith(prefix)]
    assert len(names) == 4
    for name in names:
        found = gradients[name]
        assert found is not None
        if name == "shared.weight":
            found[GIST] += torch.stack([each.grad for each in embeddings if each.grad is not None]).sum((0, 1))
        torch.testing.assert_close(found, arrays[prefix + name], rtol=1e-4, atol=1e-5)


def row_without_gist(lm: LanguageModel, arrays: Arrays) -> Tensor:
    """The summed loss of the row whose decoder attends to all positions alike, padding included."""
    ids = arrays["train/input_ids"][WITHOUT_GIST : WITHOUT_GIST + 1]
    labels = arrays["train/labels"][WITHOUT_GIST]
    encoded = lm.hf.get_encoder()(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    hidden = lm.hf.get_decoder()(
        input_ids=arrays["train/decoder_input_ids"][WITHOUT_GIST : WITHOUT_GIST + 1],
        encoder_hidden_states=encoded,
        encoder_attention_mask=torch.zeros_like(ids),
        use_cache=False,
    ).last_hidden_state[0]
    real = labels != -100
    return torch.nn.functional.cross_entropy(lm.head(hidden)[real], labels[real], reduction="sum")


@pytest.mark.parametrize("name", ["k1", "k2", "k1_noinput"])
@torch.no_grad()
def test_caches(name: str, arrays: Arrays) -> None:
    lm = tiny_t5()
    row = split(arrays[f"cache/{name}/full_input_ids"][0].tolist(), ())
    row = row._replace(target=(*arrays[f"cache/{name}/decoder_input_ids"][0, 1:].tolist(), 0))
    module = Gist(GistConfig(num_slots=row.num_gists), lm, OptimConfig(), max_steps=1, seed=0)
    module.configure_model()
    module.gist.copy_(lm.embed(torch.tensor([GIST])))
    batch = batch_of([row], contexts=True)
    memory = module.eval().compress(batch.context)
    assert isinstance(memory, EncoderStates)
    for number, block in enumerate(lm.hf.get_encoder().block):
        attention = block.layer[0]
        states = attention.layer_norm(memory.layers[number])
        for kind, project in (("keys", attention.SelfAttention.k), ("values", attention.SelfAttention.v)):
            found = project(states).unflatten(-1, (4, 8)).transpose(1, 2)
            torch.testing.assert_close(found, arrays[f"cache/{name}/{kind}"][number], rtol=0, atol=1e-5)
    torch.testing.assert_close(memory.layers[-1], arrays[f"cache/{name}/gist_last_hidden_state"], rtol=0, atol=1e-5)
    encoded = lm.encoder_side(memory, batch).layers[-1]
    golden = arrays[f"cache/{name}/cached_encoder_last_hidden_state"]
    torch.testing.assert_close(encoded, golden, rtol=0, atol=1e-5)
    (logits,) = logits_of(lm, [row], memory)
    torch.testing.assert_close(logits, arrays[f"cache/{name}/cached_logits"][0], **TOLERANCE)
    torch.testing.assert_close(logits, arrays[f"cache/{name}/uncached_logits"][0], **TOLERANCE)
    answer = lm.generate(memory, batch, max_new_tokens=8, stop_ids=(1,))
    assert answer == [until_end(arrays[f"cache/{name}/generated_cached"][0])]


@torch.no_grad()
def test_generation(arrays: Arrays) -> None:
    lm, rows = tiny_t5(), t5_rows(arrays)
    kept = [number for number in range(len(rows)) if number != WITHOUT_GIST]
    chosen = [rows[number] for number in kept]
    prefix = prefix_of(lm, chosen)
    expected = [until_end(arrays["generate/gist/tokens"][number]) for number in kept]
    for memory in (prefix, lm.read(prefix)):
        assert lm.generate(memory, batch_of(chosen), max_new_tokens=8, stop_ids=(1,)) == expected
    whole = [Row((), row.prefix + row.query, row.target) for row in rows]
    expected = [until_end(row) for row in arrays["generate/pos_control/tokens"]]
    assert lm.generate(None, batch_of(whole), max_new_tokens=8, stop_ids=(1,)) == expected


def until_end(tokens: Tensor, end: int = 1) -> list[int]:
    """Without the start token, up to the end of the sequence."""
    found = tokens.tolist()[1:]
    return found[: found.index(end)] if end in found else found
