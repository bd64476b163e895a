"""Training, resuming and evaluating a run."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from promptcomp import __version__
from promptcomp.checkpoints.places import existing
from promptcomp.config import ConfigError, dump
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.errors import command, is_full
from promptcomp.evaluation.predictions import write_predictions
from promptcomp.evaluation.results import Cost, Results, Size, read_results, write_results
from promptcomp.experiment import Experiment
from promptcomp.files import check_empty, check_no_links, locked, write_atomic
from promptcomp.language_model.lm_config import locate
from promptcomp.language_model.pretrained import origin_note
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.plain import near, say
from promptcomp.report import print_report
from promptcomp.run.assess import Assessment, assess, measure, write_rationales
from promptcomp.run.callbacks import SaveBetweenSteps, Stopped, TrainingProgress, check_loggers
from promptcomp.run.configured import experiment_to_resume, files_of
from promptcomp.run.opening import Parts, make_module, make_parts, open_trained, quiet, set_threads
from promptcomp.run.processes import Ranks, device_of, is_rank_zero, join_group, leave_group, noticing_lost_ranks
from promptcomp.run.run_directory import (
    RunDirectory,
    create,
    discard_unstarted,
    make_new,
    open_existing,
    told_by_parent,
    weights_of,
    write_environment,
)
from promptcomp.run.run_page import try_page
from promptcomp.run.shown_examples import write_examples
from promptcomp.run.teacher_targets import write_targets
from promptcomp.run.trainer import code_of_lost, make_trainer
from promptcomp.stopping import StopRequested, StopSignals, stop_signals


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to show."""

    run: Path
    results: Results | None
    step: int
    interrupted: bool = False
    preempted: bool = False
    """Interrupted by preemption: whoever sent the signal will continue the run."""
    next_steps: tuple[str, ...] | None = None
    """Commands to suggest; None: those that make sense after every run."""

    def as_json(self) -> dict[str, Any]:
        """The outcome for machines; `results` is results.json."""
        results = None if self.results is None else json.loads(self.results.model_dump_json(by_alias=True))
        return {"run": str(self.run), "step": self.step, "interrupted": self.interrupted, "results": results}

    def print(self, console: Console) -> None:
        """The outcome as a table."""
        if self.interrupted:
            console.print(f"Stopped after step {self.step}; the run is complete up to there.")
            say(console, f"Continue with: {command('fit', '--resume', self.run)}")
        elif self.results is not None:
            console.print()
            page = RunDirectory(self.run).page
            print_report(self.results, console, self.run, self.next_steps, page if page.is_file() else None)


def fit(experiment: Experiment, run_dir: Path | None, console: Console, begun: float | None = None) -> Outcome | None:
    """Train in a new run directory and evaluate. Returns None on ranks other than 0.

    `begun`: when the command did (`time.monotonic`); None: now.

    Raises:
        ConfigError: a mistake in the configuration or the data.
    """
    begun = time.monotonic() if begun is None else begun
    ranks, parts = _meet(experiment)  # most mistakes show here, before there is a directory
    run = told_by_parent()
    makes = run is None and ranks.rank == 0
    if run is None:
        run = ranks.once(lambda: create(Path(experiment.output_dir), experiment.title, run_dir))
        if makes:
            write_atomic(run.config, dump(experiment))
    try:
        return _fit_alone(experiment, parts, run, console, begun, resume=False)
    except ConfigError as error:  # one that shows when the models are opened: the same call may be given again
        if makes and not is_full(error):
            discard_unstarted(run)
        raise


def resume_fit(
    path: Path, console: Console, overrides: Iterable[str] = (), begun: float | None = None
) -> Outcome | None:
    """Continue a run from its last checkpoint (or from the start, if it has none) and evaluate; overrides may change
    how the work is divided (`trainer.devices=4`), and the trajectory stays what it was. `begun`: see `fit`.

    Raises:
        ConfigError: no run directory, a configuration that was edited since, a checkpoint that does not belong to it,
            or that cannot be continued exactly with these overrides.
    """
    begun = time.monotonic() if begun is None else begun
    run = open_existing(path)
    experiment = experiment_to_resume(run, overrides)
    return _fit_alone(experiment, _meet(experiment, run)[1], run, console, begun, resume=True)


def _meet(experiment: Experiment, run: RunDirectory | None = None) -> tuple[Ranks, Parts]:
    """The ranks, where several were started, and the parts of what all of them are to run."""
    check_loggers(experiment)
    with quiet(run):
        ranks = join_group(experiment.trainer)
        ranks.check_same(experiment)
        return ranks, ranks.agreed(lambda: make_parts(experiment))


def evaluate(path: Path, experiment: Experiment, output: Path | None, console: Console) -> Outcome:
    """Measure a trained run again, in a directory of its own; its experiment may have other data, splits or seeds.

    Raises:
        ConfigError: no run, no trained weights, or no such device here.
    """
    run = open_existing(path)
    check_no_links(run.path, ("evaluations",))
    if output is not None:
        check_empty(output)
    device_of(experiment.trainer)  # a mistake is told before there is a directory
    with quiet():
        experiment, datamodule, module = open_trained(path, experiment)
        target = RunDirectory(output or make_new(run.path / "evaluations"))
        target.path.mkdir(parents=True, exist_ok=True)
        try:
            write_atomic(target.config, dump(experiment))
            write_targets(experiment, datamodule, console, trains=False)
            write_environment(target, experiment.model_dump(mode="json"), evaluates=run.path)
            results = _evaluate(experiment, module, datamodule, target, console, Cost())
        except BaseException:  # there is nothing to continue, and the same call may be given again
            shutil.rmtree(target.path, ignore_errors=True)
            raise
    return Outcome(target.path, results, step=0, next_steps=_after_evaluation(run.path, target.path, results))


def _after_evaluation(run: Path, target: Path, results: Results) -> tuple[str, ...]:
    """Commands that make sense after an evaluation, whose folder is no run."""
    with_others = command("compare", target, "OTHER_RUN")
    try:
        before = read_results(run)
    except ConfigError:  # the run was stopped before its own evaluation
        return (with_others,)
    both = [(before.splits[name], split) for name, split in results.splits.items() if name in before.splits]
    if not both or any(old.metric != new.metric for old, new in both):
        return (with_others,)
    same = all(old.examples_sha256 == new.examples_sha256 for old, new in both)
    return command("compare", run, target, *(() if same else ("--allow-different",))), with_others


def _fit_alone(
    experiment: Experiment, parts: Parts, run: RunDirectory, console: Console, begun: float, *, resume: bool
) -> Outcome | None:
    """`_fit`, refused while another process works in the same run directory."""
    check_no_links(run.path, ("checkpoints", "export"))
    first = is_rank_zero()  # now: the variables that tell it change when processes are started
    with stop_signals() as stop, locked(run.config) if first else nullcontext():
        try:
            progress = TrainingProgress(console, experiment.trainer.max_steps, begun)
            return _fit(experiment, parts, run, progress, resume, stop)
        except KeyboardInterrupt:
            if first:
                print(f"Continue with: {command('fit', '--resume', run.path)}", file=sys.stderr)
            raise


def _fit(
    experiment: Experiment, parts: Parts, run: RunDirectory, progress: TrainingProgress, resume: bool, stop: StopSignals
) -> Outcome | None:
    (datamodule, module), console = parts, progress.console
    first = is_rank_zero()  # now: the variables that tell it change when processes are started

    def ended(line: str, step: int, preempted: bool = True) -> Outcome | None:
        run.write_log(line)
        return Outcome(run.path, None, step, interrupted=True, preempted=preempted) if first else None

    with quiet(run):
        set_threads(experiment)
        L.seed_everything(experiment.seed, verbose=False)
        if first:
            write_environment(run, experiment.model_dump(mode="json"), files=files_of(experiment))
            run.write_log(f"{'resumed' if resume else 'started'}: {experiment.title}, seed {experiment.seed}")
            _announce(experiment, run, datamodule, console)
        cost = Cost()
        trains = bool(module.method.trains and experiment.trainer.max_steps)
        try:
            with stop.leaving_at_once():  # every batch of answers is kept
                module.opened = write_targets(experiment, datamodule, console, trains=trains)
        except StopRequested:
            return ended("preempted while the LM wrote its answers", 0)
        if trains:
            try:
                cost = _train(experiment, parts, run, progress, resume)
            except Stopped as end:
                return ended(str(end), end.step, end.preempted)
        if not first:
            return None
        if trains:
            # a rank alone cannot use a part of the weights, and what is used later are those of the LM's own type
            if experiment.trainer.strategy == "fsdp" or experiment.trainer.precision == "bf16-true":
                module = make_module(experiment, datamodule.task_names)
                module.configure_model()
            module.load_trained(weights_of(run))
        else:
            module.configure_model()
        if module.method.trains:
            module.export(run.export)
        step = cost.steps or 0
        try:
            with stop.leaving_at_once():  # the trained state is saved; what is measured here is measured again
                results = _evaluate(experiment, module, datamodule, run, console, cost)
        except StopRequested:
            return ended(f"preempted after step {step}, during the evaluation", step)
        run.write_log("finished")
    return Outcome(run.path, results, step)


def _train(experiment: Experiment, parts: Parts, run: RunDirectory, progress: TrainingProgress, resume: bool) -> Cost:
    """Train, with last.ckpt at the end, also where a signal ends it (`Stopped`); all ranks come back, and the group is
    dissolved."""
    datamodule, module = parts
    trainer = make_trainer(experiment, run, datamodule, progress, resume)
    saving = next(each for each in trainer.callbacks if isinstance(each, SaveBetweenSteps))  # type: ignore[attr-defined]
    if "dev" in datamodule.eval_splits:
        module.watch(datamodule.examples("dev"))
    checkpoint = existing(run.last) if resume else None
    try:
        with noticing_lost_ranks(trainer.world_size, lambda: code_of_lost(trainer.strategy.launcher)):
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
            seconds, step = progress.seconds, trainer.global_step
            trainer.save_checkpoint(run.last)
            leave_group()
    except SystemExit as end:  # what Lightning makes of a Ctrl-C before the first step
        raise KeyboardInterrupt from end
    finally:
        saving.restore()
    if saving.received is not None:  # after the last step had begun
        raise Stopped(step)
    rate, first = progress.tokens / max(seconds, 1e-9), progress.seconds_to_first_step
    return Cost(train_seconds=seconds, steps=step, tokens_per_second=rate, seconds_to_first_step=first)


def _evaluate(
    experiment: Experiment,
    module: CompressionModule,
    datamodule: ContextDataModule,
    run: RunDirectory,
    console: Console,
    cost: Cost,
) -> Results:
    """Score every test split with its bounds; write predictions.jsonl and results.json."""
    module.eval().to(device_of(experiment.trainer))
    config = experiment.evaluation
    found: dict[str, Assessment] = {}
    calibrated = experiment.data.is_calibrated
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def advance(bar: TaskID, what: str, done: int, total: int) -> None:
            progress.update(bar, description=escape(what), completed=done, total=total)

        for split in config.splits or datamodule.test_splits:
            on_batch = partial(advance, progress.add_task("evaluate", total=None), f"evaluate {split}")
            found[split] = assess(module, datamodule, split, config, calibrated=calibrated, on_batch=on_batch)
        if config.rationales and experiment.data.has_two_tasks:
            on_rationale = partial(advance, progress.add_task("rationales", total=None))
            write_rationales(module, datamodule, tuple(found), run.rationales, on_rationale)
    first = next(iter(found.values()))
    size, prefill = measure(module, first.sizes, experiment.lm.layout, config) if config.bounds else (Size(), Cost())
    results = Results(
        method=experiment.method.name,
        title=experiment.method.title,
        family=module.lm.family,
        data=experiment.data.name,
        lm=experiment.lm.path,
        lm_note=origin_note(locate(experiment.lm.path)),
        seed=experiment.seed,
        splits={
            split: each.result.model_copy(update={"about": experiment.data.split_words.get(split, "")})
            for split, each in found.items()
        },
        size=size,
        cost=prefill.model_copy(update=cost.model_dump(exclude_none=True)),
        context_kind=experiment.data.context_kind,
        context_words=experiment.data.context_words,
        bounds=_bounds_weights(experiment, module) if config.bounds else None,
        version=__version__,
    )
    write_predictions(run.predictions, [each for assessment in found.values() for each in assessment.predictions])
    write_results(run.results, results)
    texts = {split: each.texts for split, each in found.items()}
    write_examples(run.examples, {split: each.predictions for split, each in found.items()}, texts, experiment.seed)
    try_page(run, console)
    return results


def _bounds_weights(experiment: Experiment, module: CompressionModule) -> Literal["untrained", "trained"]:
    """Whose weights full prompt and no prompt are read with: the module's LM, which training may have changed."""
    started = experiment.trainer.max_steps or getattr(experiment.method, "init_from", None) is not None
    return "trained" if module.method.lm_training != "none" and started else "untrained"


def _announce(experiment: Experiment, run: RunDirectory, datamodule: ContextDataModule, console: Console) -> None:
    """Say what runs, and what its data holds; to log.txt as well."""
    about = f"{experiment.method.name} on {experiment.data.name} with {experiment.lm.path}, seed {experiment.seed}"
    say(console, f"{about}, in {near(run.path)}", "bold")
    note = origin_note(locate(experiment.lm.path))
    told = [] if note is None else [(note, "yellow")]
    told += [(str(counts), "dim") for counts in datamodule.all_counts()]
    for text, style in [*told, *((note, "yellow") for note in (*datamodule.notes(), *datamodule.unknown()))]:
        say(console, text, style)
        run.write_log(text)
