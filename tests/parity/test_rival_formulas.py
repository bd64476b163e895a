"""Rivals against loops in float64 that are written from the papers' formulas, on plain transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel
from promptcomp.rivals import Reading, Setting
from promptcomp.rivals.attention_matching import AttentionMatching
from promptcomp.rivals.evict import Evict
from promptcomp.rivals.kept_tokens import FewerDemonstrations, LLMLingua2
from promptcomp.rivals.quantize import Quantize
from promptcomp.toy.text_lessons import train_tokenizer
from tests.tiny_models import save_word_classifier, tiny_hf

NEAR = {"rtol": 1e-5, "atol": 1e-6}
"""Rotary positions are computed in float32 whatever the model's type."""
LEAST = {"rtol": 1e-3, "atol": 1e-4}
TEXTS = ((5, 9, 7, 40, 9, 11, 30, 2, 8, 8, 51, 6), (20, 21, 3, 60, 4, 33, 17))


def doubled(kind: str) -> LanguageModel:
    return LanguageModel.from_parts(tiny_hf(kind).double())


def reading_of(lm: LanguageModel) -> Reading:
    query = EncodedQuery((3,), (EncodedTarget((4,)),))
    return Reading(lm, collate([EncodedContext(ids, (query,)) for ids in TEXTS]).context, None)


def plain(lm: LanguageModel, ids: tuple[int, ...]) -> Any:
    """Keys and values [H, S, D] of each layer, and attention weights [heads, S, S], of one text."""
    lm.hf.set_attn_implementation("eager")
    with torch.no_grad():
        output = lm.hf(torch.tensor([ids]), use_cache=True, output_attentions=True)
    lm.hf.set_attn_implementation("sdpa")
    cache = getattr(output, "cache", None) or output.past_key_values
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers], [each[0] for each in output.attentions]


def worth(lm: LanguageModel, ids: tuple[int, ...], score: str, window: int, kernel: int) -> list[list[list[float]]]:
    """Layer, head, position -> what it is worth."""
    pairs, weights = plain(lm, ids)
    twice = plain(lm, ids + ids)[1]
    count, found = len(ids), []
    for layer, (keys, _) in enumerate(pairs):
        heads = []
        for head in range(keys.shape[0]):
            group = weights[layer].shape[0] // keys.shape[0]
            own = range(head * group, (head + 1) * group)
            if score == "knorm":
                values = [-math.sqrt(sum(float(x) ** 2 for x in keys[head, j])) for j in range(count)]
            elif score == "streaming":
                values = [float(j) for j in range(count)]
            elif score == "snapkv":
                last = range(max(0, count - window), count)
                total = [sum(float(weights[layer][q, i, j]) for q in own for i in last) for j in range(count)]
                near = kernel // 2
                values = [max(total[max(0, j - near) : j + near + 1]) for j in range(count)]
            else:
                again = range(count, 2 * count)
                values = [max(float(twice[layer][q, i, j]) for q in own for i in again) for j in range(count)]
            heads.append(values)
        found.append(heads)
    return found


@pytest.mark.parametrize("score", ["streaming", "knorm", "snapkv", "kvzip"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_eviction(kind: str, score: Any) -> None:
    lm, budget, sinks, window, kernel = doubled(kind), 5, 2, 3, 3
    rival = Evict(score=score, slots=budget, sinks=sinks, window=window, kernel=kernel)
    reading = reading_of(lm)
    with torch.no_grad():
        memory: Any = rival.memory(reading, Setting(lambda context: None, reading.tokens)).memory
    assert memory.next_position.tolist() == [len(ids) for ids in TEXTS]
    for row, ids in enumerate(TEXTS):
        values = worth(lm, ids, score, window, kernel)
        certain = set()
        if score == "streaming":
            certain = set(range(min(sinks, budget // 2)))
        elif score == "snapkv":
            certain = set(range(len(ids) - min(window, budget // 2), len(ids)))
        for layer, (keys, held) in enumerate(plain(lm, ids)[0]):
            for head, each in enumerate(values[layer]):
                order = sorted(range(len(ids)), key=lambda j, each=each: (j not in certain, -each[j]))
                stays = sorted(order[:budget])
                for part, whole in zip(memory.layers[layer], (keys, held), strict=True):
                    torch.testing.assert_close(part[row, head], whole[head, stays], **NEAR)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_matching(kind: str) -> None:
    lm, budget = doubled(kind), 4
    reading = reading_of(lm)
    with torch.no_grad():
        rival = AttentionMatching(slots=budget)
        memory: Any = rival.memory(reading, Setting(lambda context: None, reading.tokens)).memory
    for row, ids in enumerate(TEXTS):
        pairs, twice, count = plain(lm, ids)[0], plain(lm, ids + ids)[1], len(ids)
        for layer, (keys, values) in enumerate(pairs):
            group = twice[layer].shape[0] // keys.shape[0]
            for head in range(keys.shape[0]):
                rows = []
                for query in range(head * group, (head + 1) * group):
                    for i in range(count, 2 * count):
                        total = sum(float(twice[layer][query, i, j]) for j in range(count))
                        rows.append([float(twice[layer][query, i, j]) / total for j in range(count)])
                mass = [math.sqrt(sum(each[j] ** 2 for each in rows) / len(rows)) for j in range(count)]
                stays = sorted(sorted(range(count), key=lambda j, mass=mass: -mass[j])[:budget])
                few = np.array([[each[j] / sum(each[k] for k in stays) for j in stays] for each in rows])
                wanted = np.array([[sum(a * float(v) for a, v in zip(each, values[head, :, d], strict=True))
                                    for d in range(values.shape[-1])] for each in rows])  # fmt: skip
                solved = np.linalg.lstsq(few, wanted, rcond=1e-3)[0]
                torch.testing.assert_close(memory.layers[layer][0][row, head], keys[head, stays], **NEAR)
                torch.testing.assert_close(memory.layers[layer][1][row, head], torch.from_numpy(solved), **LEAST)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_quantisation(kind: str, bits: Any) -> None:
    lm = doubled(kind)
    reading = reading_of(lm)
    with torch.no_grad():
        made: Any = Quantize(bits=bits).memory(reading, Setting(lambda context: None, reading.tokens))
    for row, ids in enumerate(TEXTS):
        held, count = 0, len(ids)
        for layer, pair in enumerate(plain(lm, ids)[0]):
            for by_channel, whole, found in zip((True, False), pair, made.memory.layers[layer], strict=True):
                heads, _, width = whole.shape
                held += heads * count * width * bits // 8 + 2 * 2 * heads * (width if by_channel else count)
                for head in range(heads):
                    for one in range(width if by_channel else count):
                        line = whole[head, :, one] if by_channel else whole[head, one]
                        got = found[row, head, -count:, one] if by_channel else found[row, head, one - count]
                        least = float(line.min().half())
                        step = float(((line.max() - least) / (2**bits - 1)).half())
                        for value, back in zip(line.tolist(), got.tolist(), strict=True):
                            code = min(max(round((value - least) / step), 0), 2**bits - 1)
                            # a value between two codes may be rounded either way in float32
                            off = abs(back - (code * step + least)) / step
                            assert off < 1e-3 or abs(abs((value - least) / step % 1) - 0.5) < 1e-3
        assert int(made.held[row]) == held


def test_bm25() -> None:
    documents = [[1, 2, 3], [1, 1, 4, 5], [6, 7], [2, 6, 6, 6]]
    context = EncodedContext(tuple(word for each in documents for word in each), (), borders=(3, 7, 9, 13))
    batch = collate([context])
    queries = [[word for j, other in enumerate(documents) if j != i for word in other] for i in range(4)]
    average = sum(len(each) for each in documents) / 4
    scores = []
    for document, query in zip(documents, queries, strict=True):
        total = 0.0
        for word in query:
            containing = sum(word in each for each in documents)
            idf = math.log((4 - containing + 0.5) / (containing + 0.5) + 1)
            often = document.count(word)
            total += idf * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * len(document) / average))
        scores.append(total)
    order = sorted(range(4), key=lambda i: -scores[i])
    for count in (1, 2, 3):
        room = sum(len(documents[i]) for i in order[:count])
        kept = FewerDemonstrations(choose="bm25").keep(
            Reading(doubled("llama"), batch.context, None), torch.tensor([room])
        )
        assert batch.context.part is not None
        found = set(batch.context.part[0][kept[0]].tolist())
        assert set(order[:count]) <= found


def test_llmlingua2(tmp_path: Path) -> None:
    """Words are kept by the mean probability of their tokens, through windows that cut words in two."""
    texts = [
        "Where the unbelievable cats sat, nobody was unaware of them:\n\n the  cats were everywhere",
        "nobody sat anywhere",
    ]
    save_word_classifier(tmp_path, texts)
    reader, pieces = AutoModelForTokenClassification.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    lm = LanguageModel.from_parts(tiny_hf("llama"), train_tokenizer(texts, 300))
    contexts = [tuple(lm.tokenizer(text)["input_ids"]) for text in texts]
    batch = collate([EncodedContext(ids, ()) for ids in (*contexts, ())])
    for budget in (3, 11, 25, 1000):
        keep = LLMLingua2(classifier=str(tmp_path)).keep(Reading(lm, batch.context, None), torch.tensor([budget] * 3))
        assert not keep[2].any()  # an empty context
        for row, text in enumerate(texts):
            words = text.split()
            ids = [pieces(word, add_special_tokens=False)["input_ids"] for word in words]
            flat = [(number, each) for number, word in enumerate(ids) for each in word]
            likely: list[list[float]] = [[] for _ in words]
            for first in range(0, len(flat), 12):
                window = flat[first : first + 12]
                read = torch.tensor([[pieces.cls_token_id, *(each for _, each in window), pieces.sep_token_id]])
                logits = reader(read).logits[0].double()
                for (number, _), (drops, keeps) in zip(window, logits[1:-1].tolist(), strict=True):
                    likely[number].append(1 / (1 + math.exp(drops - keeps)))
            own: list[list[int]] = [
                [] for _ in words
            ]  # tokens of the LM, whose spaces and breaks go with the word before
            for place in range(len(contexts[row])):
                before = lm.tokenizer.decode(contexts[row][: place + 1]).split()
                own[len(before) - 1].append(place)
            left, stays = budget, set()
            for number in sorted(range(len(words)), key=lambda each: -sum(likely[each]) / len(likely[each])):
                if len(own[number]) <= left:
                    left -= len(own[number])
                    stays |= set(own[number])
            offset = keep.shape[1] - len(contexts[row])
            assert keep[row].nonzero()[:, 0].tolist() == sorted(place + offset for place in stays)
