"""The `promptcomp` command. Nothing heavy is imported until a command runs, so that help appears at once."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer import Argument, Option

from promptcomp import __version__
from promptcomp.commands import data, leaderboard, models, prompts, run_files, sweep
from promptcomp.commands.asking import judge, rationales
from promptcomp.commands.bench import bench
from promptcomp.commands.common import (
    Commands,
    ConfigOption,
    JsonOption,
    MethodOption,
    Overrides,
    RunArgument,
    console_for,
    loading,
    refuse_ignored,
    show,
)
from promptcomp.commands.completing import run_folders
from promptcomp.commands.distill import distill
from promptcomp.commands.doctor import doctor
from promptcomp.commands.explain import experiments, explain, methods
from promptcomp.commands.mistakes import sentence
from promptcomp.commands.slurm_options import SlurmCommand, SlurmOption, refuse_overrides, submit_again, submit_new
from promptcomp.errors import ConfigError, Exit, RankLost, RunFailed, is_full, is_out_of_memory
from promptcomp.plain import say, shown, without_credentials, wrapped
from promptcomp.stopping import StopSignals

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="promptcomp",
    help="Train prompt compressors, measure what they keep of a prompt, save compressed prompts as files.",
    epilog="Begin with `promptcomp fit mend` (a toy world, minutes on a CPU) or `promptcomp distill --help` (one "
    "prompt of yours). `promptcomp explain WORD` says what a key or a word means.",
    cls=Commands,
    no_args_is_help=True,
    context_settings={"max_content_width": 200, "help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_RIGHTS_ERRORS = (errno.EROFS, errno.EACCES, errno.EPERM)
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.EINVAL)


def main(begun: float | None = None) -> NoReturn:
    """Run the command line. What a user can do something about becomes one message; the exit code says what it was.

    `begun`: when the command did (`time.monotonic`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name on a disk may hold what cannot be written as text
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError:  # libraries would end the program with words of their own
        _fail("the current folder was removed or cannot be entered; change to another one (cd)", Exit.MISTAKE)
    try:
        # a signal that asks a run to make room must find its handler from the start
        with StopSignals().installed(last=True) if sys.argv[1:2] == ["fit"] else contextlib.nullcontext():
            code = app(obj=begun, standalone_mode=False, prog_name="promptcomp")
    except (ConfigError, RankLost, RunFailed) as error:
        _fail(str(error), error.exit_code)
    except FloatingPointError as error:
        _fail(f"{error}; lower optim.lr or set optim.clip_norm, then start a new run", Exit.NOT_FINITE)
    except typer.Abort:  # a question that was not answered
        _fail("stopped", Exit.CRASHED)
    except Exception as error:
        if hasattr(error, "format_message"):  # of typer, or of the click that older ones stand on
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
                sys.exit(Exit.MISTAKE)
            _fail(sentence(error, sys.argv[1:]), Exit.MISTAKE)
        if is_out_of_memory(error):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            _fail(f"out of memory: {reason}; raise trainer.accumulate or lower trainer.batch_size", Exit.OUT_OF_MEMORY)
        if not isinstance(error, OSError):
            raise
        where = f" {shown(str(error.filename))}" if error.filename else ""
        if is_full(error) or error.errno in _RIGHTS_ERRORS:
            code = Exit.NO_SPACE if is_full(error) else Exit.CRASHED
            _fail(f"cannot write{where}: {error.strerror}; finished work is kept", code)
        if error.errno not in _NAME_ERRORS:
            raise
        _fail(f"cannot open{where}: {error.strerror}", Exit.MISTAKE)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: Exit) -> NoReturn:
    if message:
        text = f"error: {without_credentials(message)}"
        if sys.stderr.isatty():
            text = wrapped(text, shutil.get_terminal_size().columns)
        show(text, file=sys.stderr)
    sys.exit(code)


def _print_version(value: bool) -> None:
    if value:
        print(f"promptcomp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command(cls=SlurmCommand)
def fit(
    context: typer.Context,
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    resume: Annotated[Path | None, Option(help="Continue an interrupted run in its own directory.")] = None,
    run_dir: Annotated[
        Path | None,
        Option("--run-dir", "--output", "-o", help="The new run's directory; default: one under output_dir."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Train nothing: print the resolved configuration, parameters, memory, FLOPs.")
    ] = False,
    explain: Annotated[
        bool, Option("--explain", help="With --dry-run: what every key means, as comments of the YAML.")
    ] = False,
    device_memory: Annotated[
        float | None,
        Option(
            min=1.0,
            metavar="GIB",
            help="With --dry-run: what to change if a device with so much memory is too small (default: this GPU).",
        ),
    ] = None,
    with_controls: Annotated[
        bool,
        Option(
            "--with-controls",
            help="Also train full_prompt and no_prompt with the same data, steps and seed, and evaluate both untrained;"
            " runs of the same configuration under output_dir are reused or continued.",
        ),
    ] = False,
    bounds_only: Annotated[
        bool,
        Option(
            "--bounds-only",
            help="Train nothing: score no prompt and the full prompt on the dev split (or evaluation.splits) and say "
            "which tasks have headroom.",
        ),
    ] = False,
    keep_tasks: Annotated[
        Path | None,
        Option(metavar="FILE", help="With --bounds-only: write which tasks have headroom, for data.task_choice=FILE."),
    ] = None,
    keep_by: Annotated[
        str, Option(help="With --keep-tasks: score (accuracy, exact match), or loss of the right answer.")
    ] = "score",
    slurm: SlurmOption = None,
    lease: Annotated[Path | None, Option(hidden=True, help="Keep this file while the run is at work.")] = None,
    preempted_file: Annotated[Path | None, Option(hidden=True, help="Leave this file when preempted.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a compressor (or a control) and evaluate it beside its bounds on held-out tasks.

    The experiment is named by --method or --config, or as the first word: promptcomp fit mend optim.lr=1e-3.
    """
    console = console_for(as_json)
    if "PROMPTCOMP_PREEMPTED_FILE" in os.environ:
        say(console, "note: this job script was written by an older promptcomp; `fit --slurm` writes a new one")
    outcome: Any
    if slurm is None:
        refuse_overrides(overrides or ())
    elif with_controls:
        raise ConfigError(
            "--slurm submits one run, and --with-controls makes up to five: put the command without --slurm into a "
            "batch script for one node; it starts its processes itself (trainer.devices), and the script continues"
        )
    if (bounds_only or keep_tasks) and (with_controls or resume or slurm or not bounds_only):
        raise ConfigError("--keep-tasks goes with --bounds-only, and that with no --with-controls, --resume or --slurm")
    if keep_tasks is not None and not keep_tasks.parent.is_dir():
        raise ConfigError(f"--keep-tasks {keep_tasks}: there is no folder {keep_tasks.parent}; make it first")
    if keep_tasks is not None and keep_tasks.exists() and not keep_tasks.is_file():
        raise ConfigError(f"--keep-tasks {keep_tasks}: is no file; name one")
    if keep_by not in ("score", "loss"):
        raise ConfigError(f"--keep-by {keep_by!r} is not known; choose score or loss")
    if keep_tasks is None:
        refuse_ignored(context, "goes with --keep-tasks", "--keep-by")
    if not dry_run or slurm is not None or resume is not None:
        where = "goes with --dry-run, and with no --slurm or --resume"
        refuse_ignored(context, where, "--explain", "--device-memory")
    if resume is not None and (method or config or run_dir or with_controls or (dry_run and slurm is None)):
        raise ConfigError("--resume continues a run with its own configuration; give no other options (but --json)")
    if slurm is not None:
        if resume is None:
            submit_new(slurm, method, config, overrides or (), run_dir, dry_run, as_json)
        else:
            submit_again(slurm, resume, overrides or (), dry_run, as_json)
        return
    from promptcomp.lease import kept

    context.with_resource(kept(lease))
    if resume is not None:
        from promptcomp.run.configured import experiment_to_resume
        from promptcomp.run.run_directory import open_existing

        experiment_to_resume(open_existing(resume), overrides or ())  # a mistake is told before torch is imported
        with loading(console):
            from promptcomp.run.fitting import resume_fit

        outcome = resume_fit(resume, console, overrides or (), context.obj)
    else:
        from promptcomp import experiment

        chosen = experiment.load(method, config, overrides or ())
        if bounds_only:
            chosen.check(reads_data=not dry_run)  # its own mistakes
            chosen = chosen.bounds_only()
        chosen.check(reads_data=not dry_run)
        if dry_run:
            from promptcomp.commands.dry_run import print_estimate

            if with_controls:
                from promptcomp.run.matched_controls import print_plan

                print_plan(chosen, run_dir, console)
            print_estimate(chosen, console, as_json, device_memory, explain)
            return
        if with_controls:
            from promptcomp.run.matched_controls import fit_with_controls

            outcome = fit_with_controls(chosen, run_dir, console)
        else:
            with loading(console):
                from promptcomp.run.fitting import fit as run_fit

            outcome = run_fit(chosen, run_dir, console, context.obj)
    if outcome is not None and outcome.preempted and preempted_file is not None:
        preempted_file.touch()  # of several tasks, srun may report one that it has killed because another one had left
    _finish(outcome, console, as_json)
    if keep_tasks is not None and outcome is not None and outcome.results is not None:
        from promptcomp.evaluation.headroom import write_choice

        say(console, write_choice(outcome.results, outcome.run, keep_tasks, keep_by))


@app.command()
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Directory for the new results; default: RUN/evaluations/<time>.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained run again, with other splits or data (overrides), without changing its own results."""
    from promptcomp.run.configured import trained_experiment

    console, experiment = console_for(as_json), trained_experiment(run, overrides or ())
    experiment.without_training().check(trains=False)  # a mistake is told before torch is imported
    with loading(console):
        from promptcomp.run.fitting import evaluate as run_evaluate

    _finish(run_evaluate(run, experiment, output, console), console, as_json)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        Argument(help="Run directories (or results.json files); the first is the base.", autocompletion=run_folders),
    ],
    split: Annotated[str | None, Option(help="The only split to compare; default: all that the runs share.")] = None,
    metric: Annotated[
        str | None,
        Option(help="accuracy, task, macro_f1, loss, exact_match, rougeL, ...; default: the runs' headline metric."),
    ] = None,
    format_: Annotated[str, Option("--format", "-f", help="table, csv, markdown or json.")] = "table",
    allow_different: Annotated[
        bool, Option("--allow-different", help="Also show runs with other test examples, without ranks.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """One table over several runs, with differences and intervals; ranks no runs with other test examples."""
    from promptcomp.comparing.comparison import compare as compare_runs
    from promptcomp.comparing.comparison_table import FORMATS, print_comparison

    if as_json and format_ not in ("table", "json"):
        raise ConfigError(f"--json and --format {format_}: give one of them")
    if as_json:
        format_ = "json"
    if format_ != "table" and format_ not in FORMATS:
        raise ConfigError(f"--format {format_!r} is not known; choose table, {', '.join(FORMATS)}")
    comparison = compare_runs(*runs, split=split, metric=metric, allow_different=allow_different)
    if format_ == "table":
        print_comparison(comparison, console_for(False))
    else:
        show(FORMATS[format_](comparison), end="")


for _command in (
    *(models.pretrain, run_files.report, explain, methods, experiments, doctor),
    *(prompts.compress, prompts.inspect, prompts.generate, distill),
    *(run_files.export, run_files.push, prompts.serve, bench, judge, rationales, sweep.curve),
):
    app.command()(_command)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(run_files.app, name="checkpoint")
app.add_typer(sweep.app, name="sweep")
app.add_typer(leaderboard.app, name="leaderboard")


def _refuse(name: str, instead: str, group: typer.Typer = app) -> None:
    """A command that is gone says what to use."""

    def refuse() -> None:
        raise ConfigError(f"there is no `promptcomp {name}`: {instead}")

    takes_all = {"ignore_unknown_options": True, "allow_extra_args": True}
    group.command(name.split()[-1], hidden=True, context_settings=takes_all)(refuse)


_refuse("jobs", "`squeue --me` shows your jobs (named pc-RUN); their logs are in RUN/slurm")
_refuse("cancel", "`scancel NUMBER` ends a job; RUN/slurm/jobs.json has the numbers")
_refuse("checkpoint export", "use `promptcomp export RUN --to hf -o FOLDER` (or --to peft, tensors)", run_files.app)


def _finish(outcome: Any, console: Console, as_json: bool) -> None:
    """Print what a run found; a stopped run exits with its own code."""
    if outcome is None:  # not rank 0
        return
    if as_json:
        print(json.dumps(outcome.as_json()))
    else:
        outcome.print(console)
    if outcome.interrupted:
        raise typer.Exit(Exit.PREEMPTED if outcome.preempted else Exit.INTERRUPTED)
