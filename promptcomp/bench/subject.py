"""What is measured: a trained run, an experiment before training, or a method on an LM of random weights.

Random weights cost the same as trained ones, so a user sees what a method would cost before training it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from promptcomp import experiment as experiments
from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.datamodules.sampler import EvalPart
from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.language_model.loading import open_architecture, random_model
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.run.opening import make_parts, open_trained

POOL_CONTEXTS = 64
"""Contexts that prompts are put together from."""
DEFAULT_QUERY_TOKENS = 32
"""Where there is no data to take the mean from."""


@dataclass(slots=True)
class Subject:
    """A module in eval mode and the text that prompts and queries are made of."""

    module: CompressionModule
    method: str
    lm: str
    trained: bool
    prompt_pool: Sequence[int]
    """Token ids that prompts are cut from; empty: random ids."""
    query_pool: Sequence[int]
    query_tokens: int
    seed: int = 0

    def batch(self, prompt_tokens: int, rows: int, device: torch.device) -> Batch:
        """`rows` prompts of exactly `prompt_tokens` tokens, each with one query and an empty answer."""
        generator = torch.Generator().manual_seed(self.seed)
        contexts = []
        for row in range(rows):
            prompt = self._cut(self.prompt_pool, prompt_tokens, row * prompt_tokens, generator)
            query = self._cut(self.query_pool, self.query_tokens, row * self.query_tokens, generator)
            contexts.append(EncodedContext(prompt, (EncodedQuery(query, (EncodedTarget((query[0],)),)),)))
        return collate(contexts, pad_id=0).to(device)

    def _cut(self, pool: Sequence[int], count: int, start: int, generator: torch.Generator) -> tuple[int, ...]:
        if not pool:
            first = min(3, self.module.lm.vocab_size - 1)  # past the usual special tokens
            return tuple(torch.randint(first, self.module.lm.vocab_size, (count,), generator=generator).tolist())
        return tuple(pool[(start + i) % len(pool)] for i in range(count))


def subject_of_run(path: Path, overrides: Sequence[str], query_tokens: int | None) -> Subject:
    """A finished run with its trained weights and its own data.

    Raises:
        ConfigError: no run, no trained weights, or a mistake in the overrides.
    """
    experiment, datamodule, module = open_trained(path, overrides)
    return _with_data(experiment, datamodule, module, True, query_tokens)


def subject_of_experiment(experiment: Experiment, query_tokens: int | None) -> Subject:
    """An experiment as `fit` would start it: its own data and LM, an untrained method."""
    datamodule, module = make_parts(experiment)
    module.configure_model()
    return _with_data(experiment, datamodule, module.eval(), False, query_tokens)


def subject_of_architecture(
    method: str | None,
    config: Path | None,
    lm: str,
    slots: int | None,
    overrides: Sequence[str],
    query_tokens: int | None,
) -> Subject:
    """A method on an LM of random weights: only the architecture of `lm` is read, no weights and no data.

    Raises:
        ConfigError: an unknown method, no such architecture, or a mistake in the overrides.
    """
    own = [f"lm.path={lm}", *([] if slots is None else [f"method.num_slots={slots}"])]
    experiment = experiments.load(method, config, [*own, *overrides])
    module = experiment.method.module(
        random_lm(experiment.lm, experiment.seed),
        experiment.optim,
        max_steps=experiment.trainer.max_steps,
        seed=experiment.seed,
        task_names=("task",),
    )
    module.configure_model()
    name = experiment.method.name
    return Subject(module.eval(), name, lm, False, (), (), query_tokens or DEFAULT_QUERY_TOKENS)


def random_lm(config: LanguageModelConfig, seed: int) -> LanguageModel:
    """An LM of this architecture with random weights and no tokenizer; well-known names need no network.

    Raises:
        ConfigError: the architecture cannot be read.
    """
    architecture = open_architecture(config, offline_table=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = random_model(config, architecture)
    return LanguageModel.from_parts(hf, None, layout=config.layout, bos=False)


def _with_data(
    experiment: Experiment,
    datamodule: ContextDataModule,
    module: CompressionModule,
    trained: bool,
    query_tokens: int | None,
) -> Subject:
    prompts: list[int] = []
    queries: list[int] = []
    count = 0
    contexts = datamodule.eval_contexts(datamodule.eval_splits[0])
    for number in range(min(POOL_CONTEXTS, len(contexts))):
        encoded = contexts.encode(EvalPart(number, 0, len(contexts.targets(number))))
        prompts += encoded.ids
        for query in encoded.queries:
            queries += query.ids
            count += 1
    mean = round(len(queries) / count) if count else DEFAULT_QUERY_TOKENS
    return Subject(
        module=module,
        method=experiment.method.name,
        lm=experiment.lm.path,
        trained=trained,
        prompt_pool=prompts,
        query_pool=queries,
        query_tokens=query_tokens or max(1, mean),
    )
