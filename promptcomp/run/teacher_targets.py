"""What the LM answers behind the full contexts of a run, written once and kept in the cache (`data.targets: teacher`).

One file for an LM's weights and settings, a line for each answer, named by context and query: any run finds there what
another has asked. A batch is on disk before the next one is begun. Who finds another process at work on the file waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import ClassVar

import torch
from rich.console import Console

from promptcomp.batch import EncodedContext, EncodedQuery, collate
from promptcomp.chat.answer_file import AnswerFile, FileHeader, KeptAnswer, now
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.sections import TeacherTargets
from promptcomp.datamodules.taught import TaughtAnswer, TaughtDataModule, asked_key, teacher_ids
from promptcomp.experiment import Experiment
from promptcomp.files import cache_folder, locked, make_folder
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.loading import settings_hash
from promptcomp.memory import weights_hash
from promptcomp.plain import say
from promptcomp.run.processes import device_of
from promptcomp.run.stage import WorkStage

_PREFETCHED = 2
"""Batches that each data worker prepares ahead."""


class AnswersHeader(FileHeader):
    """What all answers of a file depend on."""

    weights: str
    settings: str

    def identity(self) -> dict[str, object]:
        """Both."""
        return {"LM": self.weights, "set of settings": self.settings}


class KeptTarget(KeptAnswer):
    """What the LM answers to a query behind its full context."""

    name: ClassVar[str] = "teacher's answer"
    again: ClassVar[str] = "written"
    way_out: ClassVar[str] = "remove it, or name another folder with PROMPTCOMP_CACHE"

    ids: tuple[int, ...]
    text: str


def write_targets(
    experiment: Experiment, datamodule: ContextDataModule, console: Console, *, trains: bool
) -> LanguageModel | None:
    """Give the data the LM's answers as targets, where it takes them, and write those that are not kept yet.

    Args:
        experiment: the run.
        datamodule: its data, read.
        console: for progress.
        trains: answers to training rows are needed, as many as it has steps, and to those of dev.

    Returns:
        The LM, where it had to be opened.

    Raises:
        ConfigError: the LM or the file of answers cannot be read.
    """
    asks = experiment.data.asks
    if asks is None or not isinstance(datamodule, TaughtDataModule):
        return None
    with torch.random.fork_rng(devices=[]):  # one that starts from scratch follows the run's seed
        torch.manual_seed(experiment.seed)
        lm = LanguageModel.from_config(experiment.lm)
    wanted = {asked_key(context, query): (context, query) for context, query in _asked(experiment, datamodule, trains)}
    stop_ids = datamodule.prompt_format().stop_ids
    made_by = {**asks.model_dump(exclude={"batch_size"}), "stop_ids": stop_ids, "bos": lm.bos_id}
    made_by["architecture"] = settings_hash(lm.text_config)
    settings = json.dumps({**made_by, "queries": "encoder" if lm.query_in_encoder else "decoder"})
    header = AnswersHeader(format="promptcomp answers of an LM", weights=weights_hash(lm.hf), settings=settings)
    name = hashlib.sha256(f"{header.weights} {settings}".encode()).hexdigest()[:16]
    path = cache_folder() / "teachers" / f"answers-{name}.jsonl"
    make_folder(path.parent, "; name one with PROMPTCOMP_CACHE")

    def wait() -> None:
        say(console, f"waiting for another process that writes answers into {path}")

    with locked(path.with_suffix(".lock"), wait, required=False), AnswerFile(path, header, KeptTarget) as file:
        missing = [pair for key, pair in wanted.items() if key not in file.entries]
        if missing:
            say(console, f"{len(missing)} of {len(wanted)} answers of the LM are not in {path} yet", "dim")
            _write(lm.to(device_of(experiment.trainer)), missing, asks, stop_ids, datamodule, file, console)
            lm.to("cpu")  # what is made beside it is drawn there
        kept = {key: file.entries[key] for key in wanted}
    if any(not 0 <= token < lm.vocab_size for entry in kept.values() for token in entry.ids):
        raise ConfigError(f"{path}: holds tokens that the LM does not have; remove the file to have it written again")
    datamodule.taught = {key: TaughtAnswer(entry.ids, not entry.cut) for key, entry in kept.items()}
    return lm


def _asked(
    experiment: Experiment, datamodule: TaughtDataModule, trains: bool
) -> Iterator[tuple[EncodedContext, EncodedQuery]]:
    """Every query that training, dev and the test splits ask, with its context; some come several times."""
    splits = dict.fromkeys(experiment.evaluation.splits or datamodule.test_splits)
    if trains:
        trainer, parts = experiment.trainer, experiment.trainer.accumulate
        batches = (trainer.max_steps + 1) * parts + _PREFETCHED * experiment.data.num_workers  # loaders look ahead
        for batch in islice(datamodule.train_sampler(micro_batches=parts), batches):
            for context in map(datamodule.train_context, batch):
                yield from ((context, query) for query in context.queries)
        splits |= {"dev": None} if "dev" in datamodule.eval_splits else {}
    for split in splits:
        contexts = datamodule.eval_contexts(split)
        for context in map(contexts.whole, range(len(contexts))):
            yield from ((context, query) for query in context.queries)


@torch.no_grad()
def _write(
    lm: LanguageModel,
    pairs: Sequence[tuple[EncodedContext, EncodedQuery]],
    asks: TeacherTargets,
    stop_ids: Sequence[int],
    datamodule: TaughtDataModule,
    file: AnswerFile[KeptTarget],
    console: Console,
) -> None:
    """Each context is read once, whatever is asked behind it."""
    queries: dict[tuple[int, ...], list[EncodedQuery]] = {}
    for context, query in pairs:
        queries.setdefault(teacher_ids(context), []).append(query)
    lm.eval()
    with WorkStage(console, "answers", len(pairs)) as bar:
        bar.at(0)
        for group in _groups(queries, asks.batch_size):
            contexts = [EncodedContext(ids, tuple(queries[ids])) for ids in group]
            memory = lm.encode(collate(contexts).to(lm.hf.device).context)
            parts = [contexts] if len(group) > 1 else _parts(contexts[0], asks.batch_size)
            for part in parts:
                keys = [asked_key(context, query) for context in part for query in context.queries]
                draws: dict[str, object] = {}
                if asks.temperature:
                    seeds = [int.from_bytes(hashlib.sha256(f"{asks.seed} {key}".encode()).digest()[:7]) for key in keys]
                    draws = {
                        "temperature": asks.temperature,
                        "top_p": asks.top_p,
                        "generator": [torch.Generator(lm.hf.device).manual_seed(seed) for seed in seeds],
                    }
                made = lm.generate(
                    memory,
                    collate(part).to(lm.hf.device),
                    max_new_tokens=asks.max_new_tokens,
                    stop_ids=stop_ids,
                    **draws,
                )
                for key, ids in zip(keys, made, strict=True):
                    cut, text = len(ids) >= asks.max_new_tokens, datamodule.written(ids)
                    file.append(KeptTarget(key=key, split="", ids=tuple(ids), text=text, cut=cut, time=now()))
                bar.more(len(keys))


def _groups(queries: Mapping[tuple[int, ...], Sequence[EncodedQuery]], most: int) -> Iterator[list[tuple[int, ...]]]:
    """Contexts of like length with at most so many queries together; one with more of them is alone."""
    group: list[tuple[int, ...]] = []
    for ids in sorted(queries, key=len):
        if group and sum(len(queries[each]) for each in (*group, ids)) > most:
            yield group
            group = []
        group.append(ids)
    yield group


def _parts(context: EncodedContext, most: int) -> list[list[EncodedContext]]:
    """One context with so many of its queries at a time, those of like length together."""
    queries = sorted(context.queries, key=lambda query: len(query.ids))
    starts = range(0, len(queries), most)
    return [[EncodedContext(context.ids, tuple(queries[start : start + most]))] for start in starts]
