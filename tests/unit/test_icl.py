"""Drawing, rendering, budgets and batches of in-context-learning data, on tiny tasks in memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import lightning as L
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from promptcomp.batch import Batch
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.datamodules.icl_config import ICLConfig, PublishedTasks
from promptcomp.datamodules.plans import assemble
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.tasks import Row, Task
from promptcomp.datamodules.tokens import TokenCache
from promptcomp.toy.icl_world import ToySource, toy_tokenizer
from promptcomp.toy.toy_sections import ToyConfig, ToyICLData

OPTIONS = ("no", "yes", "maybe so")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, so that lengths and texts are plain to see."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, **{letter: i + 1 for i, letter in enumerate(alphabet)}}
    characters = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=characters, pad_token="<pad>")


class Memory:
    """A source of tasks in memory."""

    def __init__(self, **splits: Sequence[Task]) -> None:
        self._tasks = splits

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        return self._tasks[split]


def rows(count: int, prefix: str, options: tuple[str, ...] = OPTIONS) -> tuple[Row, ...]:
    return tuple(
        Row(f"{prefix}{i:02d}", options[i % len(options)] if options else f"free {i}", options) for i in range(count)
    )


def shared_task(name: str, count: int) -> Task:
    pool = rows(count, name)
    return Task(name, "classification", pool, pool)


def source() -> Memory:
    train = [shared_task("a", 12), shared_task("b", 20), Task("f", "free_form", (f := rows(9, "f", ())), f)]
    test = [Task("t", "classification", rows(6, f"s{seed}d"), rows(5, "q"), seed) for seed in (13, 21)]
    return Memory(train=train, dev=[shared_task("d", 10)], test=test)


def module(tokenizer: PreTrainedTokenizerFast, seed: int = 0, batch_size: int = 4, **options: Any) -> ICLDataModule:
    config = ICLConfig(**{"num_demonstrations": 3, "max_example_tokens": 40, "separator": "none", **options})
    return ICLDataModule(config, source(), Reader(tokenizer, seed, batch_size))


def text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int] | Tensor) -> str:
    tokens = tokenizer.convert_ids_to_tokens([int(i) for i in ids if int(i)])
    return "".join(tokens).replace("Ġ", " ").replace("Ċ", "\n")


# ---- tokens


def test_few_and_many_texts_are_tokenised_alike(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [f"text {i} " * (1 + i % 3) for i in range(300)]
    few, many = TokenCache(tokenizer), TokenCache(tokenizer)
    many.add(texts)
    tokenizer(texts[:2], padding="max_length", max_length=4, truncation=True)  # someone else's business
    assert [few(text) for text in texts] == [many(text) for text in texts]
    assert len(few("")) == 0


# ---- sampling


def test_training_draws_are_a_function_of_seed_and_number(tokenizer: PreTrainedTokenizerFast) -> None:
    draws = [Draw(i, i + 7) for i in range(41)]
    plans = [module(tokenizer).train_plan(draw) for draw in draws]
    again = module(tokenizer)
    for draw, plan in reversed(list(zip(draws, plans, strict=True))):
        assert again.train_plan(draw) == plan
    other = module(tokenizer, seed=1)
    assert [other.train_plan(draw).demonstrations for draw in draws] != [plan.demonstrations for plan in plans]
    assert again.train_plan(Draw(5, 900)).demonstrations != again.train_plan(Draw(5, 901)).demonstrations


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("sampling", ["fresh", "fixed"])
def test_no_query_is_its_own_demonstration(tokenizer: PreTrainedTokenizerFast, queries: int, sampling: str) -> None:
    dm = module(tokenizer, queries_per_context=queries, sampling=sampling)
    assert dm.num_train_items() == 12 + 20 + 9
    anchors = set()
    for index in range(dm.num_train_items()):
        plan = dm.train_plan(Draw(index, index))
        assert len(plan.demonstrations) == 3 == len(set(plan.demonstrations))
        assert len(plan.queries) == queries == len(set(plan.queries))
        assert not set(plan.queries) & set(plan.demonstrations)
        anchors.add((plan.task.name, plan.queries[0]))
    assert len(anchors) == dm.num_train_items()


def test_small_tasks_keep_their_demonstrations(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, queries_per_context=16, num_demonstrations=10)
    for index in range(dm.num_train_items()):
        plan = dm.train_plan(Draw(index, index))
        size = len(plan.task.queries)
        assert len(plan.demonstrations) == min(10, size - 1)
        assert len(plan.queries) == max(1, size - 10)


def test_fixed_lists_are_the_same_for_all_contexts_of_a_task(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, sampling="fixed")
    lists = {dm.train_plan(Draw(index, index)).demonstrations for index in range(12)}
    assert len(lists) == 1 + 3  # three of the twelve queries are in the list themselves
    assert module(tokenizer, sampling="fixed", seed=9).eval_plans("test") == dm.eval_plans("test")


def test_fixed_lists_lose_no_demonstrations_to_queries(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, sampling="fixed")
    (first, second) = dm.eval_plans("dev")
    assert (len(first.demonstrations), len(first.queries)) == (3, 7)
    assert (len(second.demonstrations), sorted(second.queries)) == (3, sorted(first.demonstrations))


def test_order_of_demonstrations(tokenizer: PreTrainedTokenizerFast) -> None:
    given = module(tokenizer, order="as_given").train_plan(Draw(3, 3)).demonstrations
    assert list(given) == sorted(given)
    assert module(tokenizer, order="reversed").train_plan(Draw(3, 3)).demonstrations == given[::-1]
    whole = module(tokenizer, order="as_given", sampling="fixed", num_demonstrations=6)
    assert [plan.demonstrations for plan in whole.eval_plans("test")] == [(0, 1, 2, 3, 4, 5)] * 2


def test_balance_tasks_visits_every_task_once(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, balance="tasks", batch_size=3, length_window=1)
    assert dm.num_train_items() == 3
    batch = next(iter(dm.train_sampler()))
    assert sorted(dm.train_plan(draw).task.name for draw in batch) == ["a", "b", "f"]


def test_evaluation_does_not_depend_on_the_run_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    for size in (None, 1, 2):
        one, two = (module(tokenizer, seed=seed, eval_queries_per_context=size) for seed in (0, 1))
        assert one.eval_plans("test") == two.eval_plans("test")
        assert one.examples("dev") == two.examples("dev")
    assert module(tokenizer, eval_seed=5).eval_plans("test") != module(tokenizer).eval_plans("test")


def test_evaluation_asks_every_query_once(tokenizer: PreTrainedTokenizerFast) -> None:
    for size, contexts in ((None, 2), (2, 6), (1, 10)):
        dm = module(tokenizer, eval_queries_per_context=size)
        examples = dm.examples("test")
        assert [e.number for e in examples] == list(range(10))
        assert len({e.context for e in examples}) == contexts
        assert {(e.seed, e.input) for e in examples} == {(s, f"q{i:02d}") for s in (13, 21) for i in range(5)}
        assert all(e.options[e.gold] == e.output for e in examples)


@pytest.mark.parametrize(("shown", "contexts"), [(3, 2), (8, 5), (9, 10), (16, 10)])
def test_every_row_of_a_pool_that_is_shown_and_asked_is_asked_once(
    tokenizer: PreTrainedTokenizerFast, shown: int, contexts: int
) -> None:
    plans = module(tokenizer, num_demonstrations=shown).eval_plans("dev")
    assert sorted(i for plan in plans for i in plan.queries) == list(range(10))
    assert {len(plan.demonstrations) for plan in plans} == {min(shown, 9)}
    assert not any({*plan.demonstrations} & {*plan.queries} for plan in plans)
    assert len(plans) == contexts


def test_the_first_context_is_the_same_whether_all_rows_are_asked_or_some(tokenizer: PreTrainedTokenizerFast) -> None:
    first, *_ = module(tokenizer).eval_plans("dev")
    assert module(tokenizer, max_dev_queries=7).eval_plans("dev") == (first,)
    assert len(module(tokenizer, max_dev_queries=4).eval_plans("dev")) == 1


def test_limits(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, max_dev_queries=4, max_eval_queries=2, max_eval_tasks=1)
    assert len(dm.examples("dev")) == 4
    per_seed = [{e.input for e in dm.examples("test") if e.seed == seed} for seed in (13, 21)]
    assert per_seed[0] == per_seed[1], "all data seeds are asked the same queries"
    assert len(per_seed[0]) == 2


# ---- rendering


def first_context(dm: ICLDataModule, split: str = "test") -> Batch:
    return next(iter(dm.eval_dataloader(split)))


@pytest.mark.parametrize(
    ("separator", "context", "query", "target"),
    [
        ("none", "s13d00 nos13d01 yes", "q00", " no"),
        ("space", "s13d00 no s13d01 yes", " q00", " no"),
        ("newlines", "s13d00\nno\n\n\ns13d01\nyes", "\n\n\nq00", "\nno"),
        ("arrow", "s13d00 => no \ns13d01 => yes \n", "q00 =>", " no"),
    ],
)
def test_separators(tokenizer: PreTrainedTokenizerFast, separator: str, context: str, query: str, target: str) -> None:
    dm = module(tokenizer, separator=separator, order="as_given", sampling="fixed", num_demonstrations=6)
    (plan, _) = dm.eval_plans("test")
    encoded = dm.encode(plan, dm.eval_queries(plan.task.queries[0], 0))
    assert text(tokenizer, encoded.ids).startswith(context)
    assert text(tokenizer, encoded.queries[0].ids) == query
    assert next(text(tokenizer, t.ids) for t in encoded.queries[0].targets) == target


def test_output_space_can_be_switched_off(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = first_context(module(tokenizer, output_space=False))
    assert {text(tokenizer, ids) for ids in batch.target_ids} == set(OPTIONS)


def test_zero_demonstrations(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, num_demonstrations=0, separator="newlines")
    batch = first_context(dm)
    assert batch.context.ids.shape[1] == 0
    assert text(tokenizer, batch.query_ids[0]) == "q00", "nothing precedes the query, so no separator does"


def test_channel_scores_the_input_after_each_option(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(
        tokenizer, scoring="channel", separator="newlines", num_demonstrations=6, order="as_given", sampling="fixed"
    )
    batch = first_context(dm)
    assert text(tokenizer, batch.context.ids[0]).startswith("no\ns13d00\n\n\nyes\ns13d01")
    assert [text(tokenizer, ids) for ids in batch.query_ids[:3]] == [f"\n\n\n{option}" for option in OPTIONS]
    assert {text(tokenizer, ids) for ids in batch.target_ids[:3]} == {"\nq00"}
    assert batch.query_of.tolist() == list(range(len(batch.query_ids)))
    assert batch.example[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.choice[:6].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("separator", ["none", "space", "newlines", "arrow"])
@pytest.mark.parametrize("demonstrations", [0, 3])
def test_queries_behind_compressed_prompts_are_written_as_in_training(
    tokenizer: PreTrainedTokenizerFast, separator: str, demonstrations: int
) -> None:
    config = PublishedTasks(separator=separator, num_demonstrations=demonstrations)  # which may have empty inputs
    dm = ICLDataModule(config, source(), Reader(tokenizer, 0, 4))
    form = dm.prompt_format()
    for given, asked in (("what now", form.query.replace("{input}", "what now")), ("", form.empty_query)):
        (query,) = dm.eval_queries(Row(given, "yes", OPTIONS), 0)
        assert text(tokenizer, torch.tensor(query.ids, dtype=torch.long)) == asked


def test_null_inputs(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, calibration="pmi")
    real, null = next(iter(dm.eval_dataloader("test"))), next(iter(dm.null_dataloader("test")))
    assert {text(tokenizer, ids) for ids in null.query_ids} == {"N/A"}
    assert torch.equal(real.context.ids, null.context.ids)
    assert torch.equal(real.target_ids, null.target_ids)
    assert torch.equal(real.example, null.example)


@pytest.mark.parametrize("kind", ["no_labels", "no_inputs", "random_labels", "wrong_labels"])
def test_perturbations(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    plain = module(tokenizer, order="as_given", num_demonstrations=6, sampling="fixed")
    dm = module(tokenizer, order="as_given", num_demonstrations=6, sampling="fixed", perturbation=kind)
    plan = dm.eval_plans("test")[0]
    shown, original = dm.planner.shown_rows(plan), plain.planner.shown_rows(plain.eval_plans("test")[0])
    if kind == "no_labels":
        assert text(tokenizer, dm.encode(plan, []).ids) == "".join(row.input for row in original)
    elif kind == "no_inputs":
        assert text(tokenizer, dm.encode(plan, []).ids) == "".join(f" {row.output}" for row in original)
    else:
        assert [row.input for row in shown] == [row.input for row in original]
        assert all(row.output in OPTIONS for row in shown)
        assert dm.planner.shown_rows(plan) == shown, "drawn again, the labels are the same"
        right = sum(a.output == b.output for a, b in zip(shown, original, strict=True))
        assert right == 0 if kind == "wrong_labels" else right < 6


def test_wrong_labels_need_another_option(tokenizer: PreTrainedTokenizerFast) -> None:
    pool = rows(5, "x", ("only",))
    lonely = Memory(train=[Task("x", "classification", pool, pool)])
    config = ICLConfig(num_demonstrations=2, perturbation="wrong_labels")
    dm = ICLDataModule(config, lonely, Reader(tokenizer, 0, 1))
    with pytest.raises(ConfigError, match="task 'x' has a demonstration with no other option"):
        dm.train_context(Draw(0, 0))


# ---- budgets


def test_whole_demonstrations_are_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(
        tokenizer,
        order="as_given",
        sampling="fixed",
        num_demonstrations=6,
        max_example_tokens=16,
        max_context_tokens=24,
    )
    batch = first_context(dm)
    assert text(tokenizer, batch.context.ids[0]) == "s13d00 nos13d01 yes"
    assert batch.teacher_context is batch.context


def test_the_teacher_may_have_its_own_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"order": "as_given", "sampling": "fixed", "num_demonstrations": 6, "max_example_tokens": 16}
    dm = module(tokenizer, **options, max_context_tokens=24, teacher_max_context_tokens=40)
    batch = first_context(dm)
    assert text(tokenizer, batch.teacher_context.ids[0]) == "s13d00 nos13d01 yess13d02 maybe so"
    assert text(tokenizer, batch.context.ids[0]) == "s13d00 nos13d01 yes"


def test_reference_and_left_truncation(tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"order": "as_given", "sampling": "fixed", "num_demonstrations": 6, "max_context_tokens": 24}
    cut = first_context(module(tokenizer, **options, truncation="reference"))
    assert text(tokenizer, cut.context.ids[0]) == "s13d00 nos13d01 yes"
    roomier = {**options, "max_context_tokens": 32}
    cut = first_context(module(tokenizer, **roomier, truncation="reference"))
    assert text(tokenizer, cut.context.ids[0]) == "s13d00 nos13d01 yess13 maybe so"  # 32 - 19 - 9 - 1 input tokens
    left = first_context(module(tokenizer, **options, truncation="left"))
    assert (
        text(tokenizer, left.context.ids[0])
        == "s13d00 nos13d01 yess13d02 maybe sos13d03 nos13d04 yess13d05 maybe so"[-24:]
    )


def test_long_inputs_are_cut_and_all_options_see_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, max_example_tokens=12)
    long = Row("0123456789", "no", OPTIONS)
    (query,) = dm.eval_queries(long, 0)
    assert text(tokenizer, query.ids) == "012", "12 tokens less 9 of the longest option"
    assert text(tokenizer, dm.train_query(long).ids) == "012345678"
    assert len(dm.train_query(Row("0123456789", "a very long output", ())).targets[0].ids) == 11


def test_a_cut_input_keeps_its_separator(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, separator="arrow", max_example_tokens=12)
    renderer = dm.renderer
    parts = renderer.demonstration("a long input", "yes", first=True)
    assert (text(tokenizer, parts.first), text(tokenizer, parts.second)) == ("a l =>", " yes \n")
    assert (len(parts), parts.cut) == (12, 9)
    whole = renderer.demonstration("a l", "yes", first=True)
    assert (whole.first, whole.second, whole.cut) == (parts.first, parts.second, 0)
    ids, _ = assemble([whole, whole], 23, "reference")
    assert text(tokenizer, ids) == "a l => yes \na => yes \n"
    answered = renderer.demonstration("x", "a long output", first=True)
    assert (text(tokenizer, answered.first), text(tokenizer, answered.second)) == ("x", " a long o \n")
    channel = module(tokenizer, separator="arrow", max_example_tokens=12, scoring="channel").renderer
    asked = channel.demonstration("a long input", "yes", first=True)
    assert (text(tokenizer, asked.first), text(tokenizer, asked.second)) == ("yes =>", "a lo \n")


@pytest.mark.parametrize(
    ("options", "window", "message"),
    [
        ({"max_context_tokens": 100}, 128, "data.max_context_tokens = 100.*window of 128; use at most 87"),
        ({"teacher_max_context_tokens": 90}, 128, "data.teacher_max_context_tokens = 90.*use at most 87"),
        ({"max_example_tokens": 80}, 128, "leaves 47 tokens for demonstrations.*use at most 63"),
    ],
)
def test_budgets_must_fit_the_window(
    tokenizer: PreTrainedTokenizerFast, options: dict[str, int], window: int, message: str
) -> None:
    config = ICLConfig(**{"max_example_tokens": 40, **options})
    with pytest.raises(ConfigError, match=message):
        ICLDataModule(config, source(), Reader(tokenizer, 0, 1, window=window))


def test_the_window_gives_the_default_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = ICLDataModule(ICLConfig(max_example_tokens=20), source(), Reader(tokenizer, 0, 1, window=100))
    assert dm.budget == 79
    batch = next(iter(dm.train_dataloader()))
    assert batch.context.ids.shape[1] <= 79


def test_contradictory_options() -> None:
    with pytest.raises(ConfigError, match=r"pmi.*needs scoring 'direct'"):
        build(ICLConfig, {"scoring": "channel", "calibration": "pmi"})
    with pytest.raises(ConfigError, match="max_context_tokens 100 is less than max_example_tokens 256"):
        build(ICLConfig, {"max_context_tokens": 100})
    with pytest.raises(ConfigError, match=r"raise world.num_demonstrations \(now 24\)"):
        build(ToyICLData, {"num_demonstrations": 25})


def test_no_demonstrations_left(tokenizer: PreTrainedTokenizerFast) -> None:
    one = (Row("x", "yes", OPTIONS),)
    dm = ICLDataModule(ICLConfig(), Memory(train=[Task("x", "classification", one, one)]), Reader(tokenizer, 0, 1))
    with pytest.raises(ConfigError, match="task 'x' has no demonstration left to show"):
        dm.train_context(Draw(0, 0))
    empty = Task("x", "classification", (), one)
    dm = ICLDataModule(ICLConfig(), Memory(test=[empty]), Reader(tokenizer, 0, 1))
    with pytest.raises(ConfigError, match="task 'x' has no demonstration left to show"):
        dm.examples("test")


# ---- batches


def test_training_lengths_are_those_of_the_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, queries_per_context=2)
    draws = [Draw(i, i) for i in range(12)]
    for draw, length in zip(draws, dm.train_lengths(draws), strict=True):
        context = dm.train_context(draw)
        assert length == len(context.ids) + 2 * max(len(q.ids) + len(q.targets[0].ids) for q in context.queries)


def test_training_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(tokenizer, queries_per_context=2, length_window=2)
    for batch in islice(dm.train_dataloader(), 3):
        assert len(batch.context.ids) == 4
        assert len(batch.query_ids) == len(batch.target_ids) == 8
        assert batch.context_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert all(dm.task_names[i] in ("a", "b", "f") for i in batch.context.task)
    assert dm.task_names == ("a", "b", "f", "d", "t")


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("max_targets", [4, 7, 200])
def test_evaluation_batches_cover_every_target_once(
    tokenizer: PreTrainedTokenizerFast, world_size: int, max_targets: int
) -> None:
    dm = module(tokenizer, eval_batch_targets=max_targets, eval_batch_contexts=2)
    ranks = [list(dm.eval_dataloader("test", rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    found = [
        pair for batches in ranks for b in batches for pair in zip(b.example.tolist(), b.choice.tolist(), strict=True)
    ]
    assert sorted(found) == [(example, choice) for example in range(10) for choice in range(3)]
    for batch in (batch for batches in ranks for batch in batches):
        assert len(batch.target_ids) <= max(6, max_targets)
        for example, query in zip(batch.example.tolist(), batch.query_of.tolist(), strict=True):
            assert text(tokenizer, batch.query_ids[query]) == dm.examples("test")[example].input


def test_too_few_queries_for_the_processes(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="10 evaluation queries are too few for 16 processes"):
        module(tokenizer).eval_dataloader("test", world_size=16)


def test_unknown_split(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="split 'tests' is unknown; this data has dev, test"):
        module(tokenizer).eval_dataloader("tests")


def test_free_form_examples_have_their_output_as_the_only_option(tokenizer: PreTrainedTokenizerFast) -> None:
    free = Task("f", "free_form", rows(4, "d", ()), rows(2, "q", ()))
    dm = ICLDataModule(ICLConfig(), Memory(test=[free]), Reader(tokenizer, 0, 1))
    assert [(e.gold, e.options) for e in dm.examples("test")] == [(0, ("free 0",)), (0, ("free 1",))]
    assert first_context(dm).choice.tolist() == [0, 0]
    assert not dm.has_options("test")
    assert module(tokenizer).has_options("test")


def test_workers_give_the_same_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    alone = list(islice(module(tokenizer).train_dataloader(), 3))
    helped = list(islice(module(tokenizer, num_workers=1).train_dataloader(), 3))
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.context.ids, two.context.ids)
        assert torch.equal(one.target_ids, two.target_ids)


def test_the_toy_worlds() -> None:
    config = ToyICLData(queries_per_context=4, world=ToyConfig(num_train_tasks=50), max_dev_tasks=3)
    dm = ICLDataModule(config, ToySource(config.world), Reader(toy_tokenizer(), 0, 2, window=256))
    batch = next(iter(dm.train_dataloader()))
    words = dm.tokenizer.convert_ids_to_tokens(batch.context.ids[0][batch.context.mask[0]].tolist())
    assert words.count("=>") == 24 == words.count("\n")
    assert words[-1] == "\n"
    assert dm.tokenizer.convert_ids_to_tokens(batch.query_ids[0].tolist())[-1] == "=>"
    assert batch.target_ids.shape == (8, 1)
    assert dm.eval_splits == ("dev", "test", "test_hard")
    assert len({e.task for e in dm.examples("dev")}) == 3


# ---- under Lightning


class Recorder(L.LightningModule):
    """Notes which contexts it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.seen.append(batch.context.ids.flatten().tolist())
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Nothing to see."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_fit_goes_on_where_it_stopped(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Any, accumulate: int
) -> None:
    def fit(steps: int, resume: str | None = None) -> tuple[Recorder, L.Trainer]:
        recorder = Recorder()
        trainer = L.Trainer(
            max_steps=steps,
            limit_val_batches=0,
            accumulate_grad_batches=accumulate,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(recorder, train_dataloaders=None, datamodule=module(tokenizer), ckpt_path=resume, weights_only=True)
        return recorder, trainer

    whole, _ = fit(7)
    first, trainer = fit(3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(7, str(tmp_path / "last.ckpt"))
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 7 * accumulate
