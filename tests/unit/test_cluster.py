"""Profiles, the text of job scripts, what a script does, and the commands, with stand-ins for SLURM's programs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptcomp import __version__
from promptcomp.cli import app
from promptcomp.cluster import submit as submitting
from promptcomp.cluster.profile import SlurmProfile, load_profile, split_overrides
from promptcomp.cluster.submit import Job, directive, fit_job, place, predicted_start, render, submit, workers_job
from promptcomp.commands.slurm_options import with_default_profile
from promptcomp.errors import ConfigError
from promptcomp.experiment import load
from promptcomp.sweeps.checking import check
from promptcomp.sweeps.sweep_file import sweep_of

GOLDEN = Path(__file__).parent / "golden_job.sh"
FULL = """
default: big
big:
  partition: gpu,long
  account: lab
  time: 2:00:00
  nodes: 2
  gpus_per_node: 4
  gpu_type: a100
  cpus_per_task: 8
  mem: 64G
  constraint: "[rack1|rack2]"
  exclude: n[7-8]
  modules: [cuda/12.4]
  environment: {NCCL_SOCKET_IFNAME: ib0, NOTE: "it's $HOME; \\"quoted\\""}
  setup: [source "/opt/my env/bin/activate"]
  extra: [--exclusive]
  python: /opt/my env/bin/python
  mail: me@example.org
  max_requeues: 3
small: {time: 30, offline: false}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("PYTHONPATH", "PROMPTCOMP_SLURM_PROFILES"):
        monkeypatch.delenv(name, raising=False)


def test_the_script(tmp_path: Path) -> None:
    Path("promptcomp-slurm.yaml").write_text(FULL)
    job = fit_job(Path("/runs/my run 100%"), "gist on toy_icl", load_profile("default"))
    text = render(job, load_profile("default"), Path("/home/me/a project")).replace(__version__, "VERSION", 1)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0


def test_options_are_read_by_sbatch_as_they_were_meant() -> None:
    assert directive("--time=2:00:00") == "--time=2:00:00"
    assert directive('--comment=a "b" \\ #c') == '--comment="a \\"b\\" \\\\ #c"'
    assert directive("--exclusive") == "--exclusive"


def test_paths_that_sbatch_cannot_take() -> None:
    for odd in ("/a\\b", "/a\nb"):
        with pytest.raises(ConfigError, match="backslash or a line break"):
            render(fit_job(Path(odd), "x", SlurmProfile()), SlurmProfile(), Path("/"))


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"image": "nv/torch:25"}, "--container-image=nv/torch:25 --container-mounts=/w:/w,/r:/r"),
        (
            {"image": "a b.sif", "runner": "apptainer"},
            "apptainer exec --nv --bind /w:/w,/r:/r --pwd /w 'a b.sif' python",
        ),
    ],
)
def test_containers(container: dict[str, str], expected: str) -> None:
    profile = SlurmProfile.model_validate({"container": container, "gpus_per_node": 1})
    assert expected in render(fit_job(Path("/r"), "x", profile), profile, Path("/w"))


def test_profiles_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_profile("default", ["slurm.time=1-0", "slurm.environment.A=1"]).environment == {"A": "1"}
    home = tmp_path / "home/.config/promptcomp/slurm.yaml"
    home.parent.mkdir(parents=True)
    home.write_text("small: {time: 99}\nother: {nodes: 3}\n")
    Path("promptcomp-slurm.yaml").write_text(FULL)
    Path("named.yaml").write_text("small: {time: 55}\nnamed: {qos: x}\n")
    monkeypatch.setenv("PROMPTCOMP_SLURM_PROFILES", "named.yaml")
    assert load_profile("small").time == "30"
    assert load_profile("other").nodes == 3
    assert load_profile("named").qos == "x"
    assert load_profile("named.yaml:small").time == "55"
    changed = load_profile("default", ["slurm.time=3:00:00", "slurm.mem=null"])
    assert (changed.time, changed.mem, changed.nodes) == ("3:00:00", None, 2)


@pytest.mark.parametrize(
    ("chosen", "overrides", "said"),
    [
        ("smal", [], "did you mean 'small'?"),
        ("nowhere.yaml:x", [], "nowhere.yaml: no such profile file"),
        ("small", ["partiton=x"], "did you mean 'partition'?"),
        ("small", ["time=soon"], "a time is written"),
        ("small", ["nodes=0"], "nodes"),
        ("small", ["extra=[exclusive]"], "no option"),
        ("small", ["extra=[--ntasks=3]"], "set by promptcomp"),
        ("small", ["extra=[-N2]"], "set by promptcomp"),
        ("small", ["environment.A-B=1"], "no variable name"),
        ("small", ["gpu_type=a100"], "gpu_type needs gpus_per_node"),
        ("small", ["mem"], "section.key=value"),
        ("small", ['account="a\\nb"'], "one line"),
    ],
)
def test_mistakes_in_profiles(chosen: str, overrides: list[str], said: str) -> None:
    Path("promptcomp-slurm.yaml").write_text(FULL)
    with pytest.raises(ConfigError) as error:
        load_profile(chosen, [f"slurm.{word}" for word in overrides])
    assert said in str(error.value)


def test_the_value_of_slurm_is_optional() -> None:
    assert with_default_profile(["--slurm"]) == ["--slurm", "default"]
    assert with_default_profile(["--slurm", "seed=1"]) == ["--slurm", "default", "seed=1"]
    assert with_default_profile(["--slurm", "--dry-run"]) == ["--slurm", "default", "--dry-run"]
    assert with_default_profile(["--slurm", "a100", "seed=1"]) == ["--slurm", "a100", "seed=1"]
    assert split_overrides(["slurm.time=5", "seed=1"]) == (["slurm.time=5"], ["seed=1"])


def test_devices_follow_the_profile() -> None:
    experiment = load("mend", None, ["trainer.batch_size=8"])
    placed = place(experiment, SlurmProfile(nodes=2, gpus_per_node=4)).trainer
    assert (placed.devices, placed.num_nodes, placed.accelerator) == (4, 2, "gpu")
    for overrides, profile, said in (
        (["trainer.devices=3"], SlurmProfile(gpus_per_node=2), "slurm.tasks_per_node=3"),
        (["trainer.batch_size=4"], SlurmProfile(gpus_per_node=8), "batch_size=4"),
        (["trainer.num_nodes=4"], SlurmProfile(nodes=2), "slurm.nodes=4"),
        (["trainer.accelerator=cpu"], SlurmProfile(gpus_per_node=2), "asks for GPUs"),
    ):
        with pytest.raises(ConfigError, match=said):
            place(load("mend", None, overrides), profile)


# ---- what a script does, with stand-ins for SLURM's programs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins on PATH; each writes its words to `called`. `state` is what squeue says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "state").write_text("RUNNING")
    here = shlex.quote(str(tmp_path))
    bodies = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "squeue": f"cat {here}/state",
        "scontrol": f"[ -e {here}/forbidden ] && exit 1; echo REQUEUED > {here}/state; kill -KILL $PPID",
        "sbatch": f"[ -e {here}/refuses ] && {{ echo sbatch: error: invalid account >&2; exit 1; }}; echo '77;lab'",
    }
    for name, body in bodies.items():
        (folder / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {here}/called\n{body}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    return tmp_path


def _run(
    folder: Path, body: str, *, array: bool = False, resubmissions: int = 0, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run a script whose interpreter is `body`."""
    worker = folder / "worker.sh"
    worker.write_text(f"#!/bin/bash\n{body}\n")
    worker.chmod(0o755)
    profile = SlurmProfile.model_validate({"python": str(worker), "signal_seconds": 10, **settings})
    place_ = folder / "run dir" / "slurm"
    place_.mkdir(parents=True, exist_ok=True)
    job = Job("n", "t", place_, ("work", "{worker}"), 1, 4 if array else 0)
    text = render(job, profile, folder)
    variables = {**os.environ, "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    return subprocess.run(
        ["bash", "-c", text, "job.sh", str(resubmissions)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _called(folder: Path, name: str) -> list[str]:
    lines = (folder / "called").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{name} ")]


def test_a_finished_or_failed_step_ends_the_job(programs: Path) -> None:
    for code in (0, 3):
        assert _run(programs, f"exit {code}").returncode == code
    assert not _called(programs, "scontrol")


@pytest.mark.parametrize("body", ["exit 75", "kill -USR1 $$", 'touch "${@: -1}"; exit 137'])
def test_a_step_that_makes_room_is_requeued(programs: Path, body: str) -> None:
    assert _run(programs, body).returncode == -9  # SLURM ends the script
    assert _called(programs, "scontrol") == ["scontrol requeue 12"]


def test_an_element_is_requeued_alone(programs: Path) -> None:
    assert _run(programs, '[ "$#" = 4 ] && exit 75', array=True).returncode == -9
    assert _called(programs, "scontrol") == ["scontrol requeue 12_3"]


def test_the_warning_reaches_the_task(programs: Path) -> None:
    done = _run(
        programs, "trap 'echo noted; exit 75' USR1; (sleep 0.5; kill -USR1 $PPID) & while :; do sleep 0.1; done"
    )
    assert done.returncode == -9
    assert "noted" in done.stdout


def test_a_task_that_does_not_stop_in_time_is_restarted(programs: Path) -> None:
    body = "trap : USR1; kill -USR1 $PPID; for i in {1..70}; do sleep 0.1; done"
    done = _run(programs, body)
    assert "have not stopped in 5 s" in done.stdout
    assert _called(programs, "scontrol") == ["scontrol requeue 12"]


def test_a_cancelled_job_is_not_restarted(programs: Path) -> None:
    (programs / "state").write_text("CANCELLED")
    done = _run(programs, "exit 75")
    assert done.returncode == 75
    assert "the job is CANCELLED: it is not restarted" in done.stdout
    assert not _called(programs, "scontrol")


def test_restarts_are_counted(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    done = _run(programs, "exit 75", resubmissions=1, max_requeues=3)
    assert done.returncode == 75
    assert "restarted 3 times, no more" in done.stdout


def test_where_requeueing_is_forbidden_the_script_is_submitted_anew(programs: Path) -> None:
    (programs / "forbidden").touch()
    done = _run(programs, "exit 75", array=True)
    assert done.returncode == 0
    script = programs / "run dir/slurm/job.sh"
    assert _called(programs, "sbatch") == [f"sbatch --parsable --array=3 {script} 1"]
    assert (script.parent / "resubmitted.txt").read_text() == "77\n"


def test_odd_characters_arrive(programs: Path) -> None:
    odd = 'it\'s $HOME `id` "x" *'
    done = _run(programs, 'printf "%s|" "$ODD" "$@"', environment={"ODD": odd}, modules=[])
    assert f"{odd}|-m|promptcomp|work|3|" in done.stdout


# ---- submission


def test_submission_is_recorded(programs: Path) -> None:
    run = programs / "runs" / "a run"
    run.mkdir(parents=True)
    job = fit_job(run, "title", SlurmProfile())
    assert (submit(job, SlurmProfile(), "default"), job.script) == ("77", run / "slurm/job.sh")
    submit(job, SlurmProfile(), "default")
    record = json.loads((run / "slurm/jobs.json").read_text())["jobs"][1]
    assert (record["id"], record["kind"], record["command"]) == ("77", "fit", ["fit", "--resume", str(run)])
    (run / "slurm/jobs.json").write_text("{")
    with pytest.raises(ConfigError, match="remove it to continue"):
        submit(job, SlurmProfile(), "default")
    assert len(_called(programs, "sbatch")) == 2


def test_refused_or_absent_sbatch_keeps_the_script(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = programs / "runs" / "r"
    run.mkdir(parents=True)
    (programs / "refuses").touch()
    with pytest.raises(ConfigError, match=r"sbatch refuses: invalid account\n.*job.sh"):
        submit(fit_job(run, "title", SlurmProfile()), SlurmProfile(), "default")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="sbatch is not installed here"):
        submit(fit_job(run, "title", SlurmProfile()), SlurmProfile(), "default")
    assert (run / "slurm/job.sh").is_file()
    assert not (run / "slurm/jobs.json").exists()


def test_arrays(programs: Path) -> None:
    profile = SlurmProfile(gpus_per_node=2, cpus_per_task=4)
    assert submit(workers_job(programs / "a sweep", 8, profile), profile, "default") == "77"
    text = (programs / "a sweep/slurm/job.sh").read_text()
    for line in (
        '#SBATCH --job-name="pc-a sweep"', "#SBATCH --array=0-7%8", "#SBATCH --gpus-per-node=2",
        "#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=8",
    ):  # fmt: skip
        assert f"{line}\n" in text
    folder = shlex.quote(str(programs / "a sweep"))
    assert f'{sys.executable} -m promptcomp sweep work {folder} --worker "$SLURM_ARRAY_TASK_ID" &' in text
    assert "PROMPTCOMP_LAUNCHER" not in text
    with pytest.raises(ConfigError, match=r"slurm\.nodes=1"):
        workers_job(programs, 1, SlurmProfile(nodes=2))


def test_forecast(programs: Path) -> None:
    (programs / "bin/sbatch").write_text("#!/bin/bash\necho 'sbatch: Job 1 to start at 2026 using 1 processors' >&2\n")
    assert predicted_start("#!/bin/bash\n") == "to start at 2026 using 1 processors"


def test_submission_through_the_program(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    words = ("fit", "--method", "mend", "data.world.num_test_tasks=2", "data.world.num_dev_tasks=2")
    code, out, _ = _program(*words, "--run-dir", "r", "--slurm", "--json", "slurm.nodes=2")
    assert code == 0
    assert json.loads(out) == {"run": "r", "job": "77", "script": str(programs / "r/slurm/job.sh")}
    assert "num_nodes: 2" in Path("r/config.yaml").read_text()
    assert "PROMPTCOMP_RUN_DIRECTORY" not in os.environ
    code, out, _ = _program("fit", "--resume", "r", "--slurm", "slurm.nodes=2", "--dry-run")
    assert code == 0
    assert out.startswith("#!/bin/bash\n# continues r\n")
    assert "trainer." not in out
    _, out, _ = _program("fit", "--resume", "r", "--slurm", "--dry-run", "slurm.tasks_per_node=2", "trainer.threads=1")
    assert "/r trainer.devices=2 trainer.num_nodes=1 trainer.threads=1 --preempted-file " in out
    for more, said in (
        (("fit", "--resume", "r", "--slurm", "optim.lr=1"), "--resume continues a run as it was configured"),
        ((*words, "slurm.nodes=2"), "add --slurm"),
        ((*words, "--slurm", "--with-controls"), "--slurm submits one run"),
        ((*words, "--slurm", "slurm.offline=true", "lm.path=no/model"), "set slurm.offline=false"),
        (("sweep", *words[1:], "method.num_slots=2,4", "--slurm", "lm.path=./nowhere"), "./nowhere"),
        (("jobs", "runs", "--tail", "3"), "squeue --me"),
        (("cancel", "--all"), "scancel NUMBER"),
    ):
        code, _, err = _program(*more)
        assert (code, said in err) == (2, True), err
    (programs / "refuses").touch()
    code, _, err = _program(*words, "--run-dir", "again", "--slurm", "slurm.nodes=2", "slurm.time=30")
    assert code == 2
    assert "to try again: promptcomp fit --resume again --slurm default slurm.nodes=2 slurm.time=30" in err


def test_every_lm_of_a_sweep_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(submitting, "check_parts", lambda experiment, _: looked.append(experiment.lm.path))
    config = sweep_of("mend", ["method.num_slots=2,4,8", "lm.path=one,two"])
    submitting.check_all_parts(check(config), SlurmProfile())
    assert sorted(looked) == ["one", "two"]


def _program(*words: str) -> tuple[int, str, str]:
    """The program in this process."""
    import contextlib
    import io

    from promptcomp.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["promptcomp", *words])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


def test_a_script_of_an_older_program_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTCOMP_PREEMPTED_FILE", "x")
    assert "written by an older promptcomp" in CliRunner().invoke(app, ["fit"]).output
