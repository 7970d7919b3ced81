"""``echo-pl -m sweep=lab`` with runs that are stand-ins: what is made, from what, how often, and what a failure takes along."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError
from ranks import SIZES

from echo_pl.__main__ import main
from echo_pl.config.compose import compose_config
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.io.run_folders import RunInfo, now_text, write_info
from echo_pl.runs.checkpointing import StoppedError
from echo_pl.sweeps import job as sweep_job
from echo_pl.sweeps import plan as sweep_plan
from echo_pl.sweeps.cells import Cell, make_cells, make_job
from echo_pl.sweeps.plan import SweepPart, parts
from echo_pl.sweeps.record import SweepRecord
from echo_pl.sweeps.sweep import Progress

pytestmark = pytest.mark.slow

OWN = ["threads=1", "min_free_gb=0", "sweep=lab", "backbone.needs_warmup=false", *SIZES]


@pytest.fixture(scope="module")
def data_root(tiny_data) -> Path:
    return tiny_data


class Runs:
    """Fake training: writes the files of a run, and fails on request."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.configs: dict[str, dict] = {}
        self.broken: str | None = None

    def make(self, name: str, folder: Path, config, stage: str) -> None:
        if self.broken is not None and self.broken in name:
            raise ConnectionError("the power is gone")
        for needed in (config.start, config.stage.module.get("trajectories")):
            assert needed in (None, "auto") or Path(needed).exists(), "begun before what it starts from was there"
        self.made.append(name)
        self.configs[name] = OmegaConf.to_container(config, resolve=False)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "final.ckpt").touch()
        info = {"backbone": "x", "block_size": None, "data": "x", "start": None, "chain": "", "mlflow_run_id": None}
        write_info(folder, RunInfo(stage=stage, status="finished", time=now_text(), **info))

    def run(self, config) -> None:
        self.make(config.run_name, Path(config.outputs) / "runs" / config.run_name, config, config.stage.name)

    def collect(self, config, folder: Path, kept_tokens: int, student: Path | None) -> None:
        assert student is None or student.exists(), "begun before the student that the teacher leans to was there"
        self.make(folder.name, folder, config, "rad")

    @staticmethod
    def measure(part: SweepPart) -> dict[str, float]:
        return {"finding_f1": part.config.block_size / 100, "rouge_l": 0.5, "tps": 7.0, "nfe": 3.0, "nothing": float("nan")}


@pytest.fixture
def runs(monkeypatch) -> Iterator[Runs]:
    fake = Runs()
    monkeypatch.setattr(sweep_job, "run", fake.run)
    monkeypatch.setattr(sweep_job, "collect_trajectories", fake.collect)
    monkeypatch.setattr(sweep_job, "measure", fake.measure)
    yield fake
    GlobalHydra.instance().clear()


def command(monkeypatch, data_root: Path, outputs: Path, *arguments: str) -> int:
    """Exit status of ``echo-pl -m`` in this process."""
    own = [*OWN, "sweep.apart=false", f"data_root={data_root}", f"outputs={outputs}"]
    monkeypatch.setattr(sys, "argv", ["echo-pl", "-m", *own, *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def cells(outputs: Path) -> dict[str, tuple[str, str | None, dict[str, str], dict[str, float]]]:
    """Children of the only parent: status, error, parameters and metrics by name."""
    client = MlflowClient(f"sqlite:///{outputs.resolve() / 'mlflow.db'}")
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    (parent,) = [run for run in found if run.data.tags.get("echo_pl.sweep") == "lab"]
    of = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(of) == len(found) - 1
    return {run.data.tags["echo_pl.cell"]: state(run) for run in of}


def state(run: Run) -> tuple[str, str | None, dict[str, str], dict[str, float]]:
    return run.info.status, run.data.tags.get("echo_pl.error"), run.data.params, run.data.metrics


def kinds(names: list[str]) -> list[str]:
    """Names without the digests."""
    return [name.rpartition("-")[0] for name in names]


def composed(data_root: Path, *overrides: str) -> DictConfig:
    return compose_config([f"data_root={data_root}", *OWN, *overrides])


def plan(data_root: Path, *overrides: str) -> list[SweepPart]:
    return parts(composed(data_root, *overrides))


AXES = ["block_size=4,8", "ablation=dcd", "seed=0"]


def test_a_failure_takes_along_what_starts_from_it_and_a_second_start_makes_what_is_missing(
    runs, monkeypatch, data_root, tmp_path, capsys
):
    runs.broken = "rad-L4"
    assert command(monkeypatch, data_root, tmp_path, *AXES) == 1
    assert kinds(runs.made) == ["pretrain-s0", "rad-L8-s0", "trajectories-L8-s0", "dcd-L8-s0"]
    printed = capsys.readouterr().err
    assert "echo-pl: 3 of 7 parts of the sweep are missing:" in printed
    assert ": the power is gone\n    (" in printed
    assert printed.count("not begun: it starts from rad-L4-s0-") == 2
    found = cells(tmp_path)
    assert sorted(status for status, *_ in found.values()) == ["FAILED"] * 2 + ["FINISHED"] * 3
    first, runs.made, runs.broken = set(runs.made), [], None
    assert command(monkeypatch, data_root, tmp_path, *AXES) == 0
    assert kinds(runs.made) == ["rad-L4-s0", "trajectories-L4-s0", "dcd-L4-s0"]
    found = cells(tmp_path)
    assert set(found) == {name for name in first | set(runs.made) if not name.startswith("trajectories")}
    for status, error, params, metrics in found.values():
        assert (status, error) == ("FINISHED", None)
        assert params["seed"] == "0"
        assert metrics == {"finding_f1": metrics["finding_f1"], "rouge_l": 0.5, "tps": 7.0, "nfe": 3.0}
    of = sorted((params["objective"], params["block_size"]) for _, _, params, _ in found.values())
    assert of == [("ar", "1"), ("dcd", "4"), ("dcd", "8"), ("teacher", "4"), ("teacher", "8")]


def test_students_start_from_the_teacher_of_their_own_block_size_and_seed(data_root):
    for size, seed in ((4, 0), (8, 1)):
        base, teacher, stored, student = plan(data_root, f"block_size={size}", f"seed={seed}", "stage.max_steps=9")
        assert (student.config.start, stored.config.start, teacher.config.start) == (
            str(teacher.checkpoint), str(teacher.checkpoint), str(base.checkpoint)
        )  # fmt: skip
        assert student.config.stage.module.trajectories == str(stored.folder)
        assert student.before == (teacher.name, stored.name)
        for part in (teacher, stored, student):
            assert part.name.startswith(f"{part.stage}-L{size}-s{seed}-")
            assert part.config.stage.module.decode.block_size == size
            assert part.config.backbone.factory.seed == seed
        assert (base.name[:11], base.config.seed) == (f"pretrain-s{seed}", seed)
        # What is given for stage 3 is not for its teacher.
        assert (teacher.config.stage.max_steps, student.config.stage.max_steps) == (1800, 9)
        assert (teacher.config.data.batch_size, stored.config.data.batch_size, student.config.data.batch_size) == (32, 48, 16)


def test_teachers_of_larger_blocks_may_grow_from_those_of_smaller_ones(data_root):
    planned = partial(plan, data_root, "sweep.grow=[4,8]", "+sweep.stages.grown.max_steps=7")
    base, four, eight, sixteen, stored, student = planned("block_size=16")
    assert [part.config.block_size for part in (four, eight, sixteen, stored, student)] == [4, 8, 16, 16, 16]
    assert [part.config.start for part in (four, eight, sixteen)] == [str(part.checkpoint) for part in (base, four, eight)]
    grown = [(part.config.start_stage, part.config.start_block_size) for part in (four, eight, sixteen, stored, student)]
    assert grown == [(None, None), ("rad", 4), ("rad", 8), (None, None), (None, None)]
    steps = four.config.stage.max_steps
    assert [part.config.stage.max_steps for part in (eight, sixteen)] == [7, 7]
    assert sixteen.config.stage.module.decode.block_size == 16
    assert [part.name for part in planned("block_size=8")[:3]] == [base.name, four.name, eight.name]
    plain = plan(data_root, "sweep.grow=[]", "block_size=4")
    assert [part.name for part in planned("block_size=4")] == [part.name for part in plain], "nothing to grow from"
    assert plain[1].config.stage.max_steps == steps != 7
    with pytest.raises(ValueError, match=r"from small to large, got \[8, 4\]"):
        planned("sweep.grow=[8,4]")


def test_a_student_may_be_the_teacher_of_the_next_round(data_root):
    planned = partial(plan, data_root)
    *before, stored, student = planned("ablation=next_round", "sweep.round_before=ce")
    assert [part.name for part in before] == [part.name for part in planned("ablation=ce")]
    assert (stored.config.start, student.config.start) == (str(before[-1].checkpoint),) * 2
    assert (stored.config.start_stage, student.config.start_stage) == ("dcd", "dcd")
    assert student.before == (before[-1].name, stored.name)
    assert student.config.stage.module.trajectories == str(stored.folder)
    assert planned("ablation=next_round")[-1].name not in (student.name, before[-1].name)
    for wrong in ("sweep.store=false", "stage.module.tilt=1.0", "stage.module.student_prefix=0.5", "start_stage=rad"):
        with pytest.raises(ValueError, match=r"leave out tilt, student_prefix and sweep\.store=false"):
            planned("ablation=next_round", wrong)


def test_a_server_that_is_down_is_logged_to_by_the_next_start(runs, monkeypatch, data_root, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = "mlflow.tracking_uri=http://127.0.0.1:9"
    one = ["block_size=4", "ablation=dcd", "seed=0", "sweep.store=false"]
    assert command(monkeypatch, data_root, tmp_path, *one, down, "mlflow.on_failure=error") == 1
    assert runs.made == []
    assert command(monkeypatch, data_root, tmp_path, *one, down) == 0
    assert len(runs.made) == 3
    assert "start the same command again when the server is up" in capsys.readouterr().err
    assert command(monkeypatch, data_root, tmp_path, *one) == 0
    assert len(runs.made) == 3
    assert [status for status, *_ in cells(tmp_path).values()] == ["FINISHED"] * 3


def test_unsuitable_jobs_are_an_error(data_root, tmp_path):
    config = partial(composed, data_root, f"outputs={tmp_path}")
    for wrong, message in (
        ("stage=rad", "a sweep's jobs are of stage dcd"),
        ("start=x.ckpt", "a sweep trains the teachers of its jobs itself"),
        ("run_name=x", "leave run_name out"),
        ("sweep.kept_tokens=auto", r"sweep.kept_tokens must be a number, 0 \(all\) or more, got 'auto'"),
        ("sweep.kept_tokens=-1", "got -1"),
        ("sweep.tilt_rounds=0", "sweep.tilt_rounds must be at least 1, got 0"),
        ("ablation=bigrams sweep.store=false", r"there are none with sweep\.store=false or student_prefix"),
        ("ablation=student_prefix stage.module.student.bigrams=0.5", "student.bigrams=0.5 counts pairs of tokens"),
        ("ablation=bigrams stage.module.decode.token_choice.temperature=0.7", "needs greedy tokens: .*, got 0.7"),
    ):
        with pytest.raises(ValueError, match=message):
            parts(config(*wrong.split()))
    with pytest.raises(ConfigKeyError, match="max_step"):
        parts(config("+sweep.stages.rad.max_step=3"))
    with pytest.raises(ValueError, match="are compared from MLflow: leave mlflow=null out"):
        SweepRecord(config("mlflow=null"))
    with pytest.raises(ValueError, match="add hydra/launcher=slurm"):
        sweep_job.run_part(config("trainer.devices=2", "sweep.part=" + parts(config("trainer.devices=2"))[0].name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ablation", "way"),
    [("rad_scale", r"\+sweep\.stages\.rad\.limit_train=600,1200,2400"), ("grow", r"sweep\.grow=\[4,8\]")],
)
def test_ablations_of_teachers_are_rejected_with_the_way_a_sweep_has(runs, monkeypatch, data_root, tmp_path, capsys, ablation, way):
    assert command(monkeypatch, data_root, tmp_path, "block_size=4", f"ablation=dcd,{ablation}", "seed=0") == 2
    assert re.search(rf"ablation={ablation} is for single runs of stage rad, .* replace it by {way}", capsys.readouterr().err)
    assert runs.made == []
    with pytest.raises(ValueError, match="leave start_block_size out"):  # by its keys too, where nobody has named it
        plan(data_root, "ablation=grow")


def chain(data_root: Path, *overrides: str) -> dict[str, str]:
    """Name of every part by stage."""
    return {part.stage: part.name for part in plan(data_root, *overrides)}


def test_parts_are_shared_exactly_where_they_would_be_the_same(data_root):
    plain = chain(data_root)

    def others(*overrides: str) -> set[str]:
        changed = chain(data_root, *overrides)
        return {stage for stage in plain if changed.get(stage) != plain[stage]}

    all_of_them = set(plain)
    assert all_of_them == {"pretrain", "rad", "trajectories", "dcd"}
    assert (
        others("outputs=elsewhere", "stage.eval_batch_size=1", "data.prefetch_batches=3", "callbacks=none", "sweep.name=x") == set()
    )
    assert others("ablation=ce") == others("stage.max_steps=3") == others("ablation=gate") == others("ablation=bigrams") == {"dcd"}
    assert others("ablation=left_to_right") == others("sweep.collect_batch_size=8") == {"trajectories", "dcd"}
    assert others("block_size=4") == others("+sweep.stages.rad.limit_train=4") == {"rad", "trajectories", "dcd"}
    assert others("seed=1") == others("ablation=raw") == others("+sweep.stages.pretrain.max_steps=3") == all_of_them
    assert others("sweep.trajectories=4") == {"trajectories", "dcd"}
    assert others("ablation=student_prefix") == {"trajectories", "dcd"}, "which decodes on the fly"
    assert "trajectories" not in chain(data_root, "ablation=student_prefix")


def test_students_before_a_job_s_own_decode_alone(data_root):
    """So a job with bigrams shares the student that its teacher leans to, and the trajectories, with one that has none."""
    tilted, with_bigrams = ([part.name for part in plan(data_root, f"ablation={name}")] for name in ("tilted", "tilted_bigrams"))
    assert tilted[:-1] == with_bigrams[:-1]
    assert tilted[-1] != with_bigrams[-1]


def test_bigrams_are_part_of_a_student_s_name(data_root):
    with_bigrams = chain(data_root, "stage.module.student.bigrams=0.5")["dcd"]
    assert with_bigrams != chain(data_root)["dcd"]
    for rule in ("min_count=3", "repeats=false"):
        assert chain(data_root, "stage.module.student.bigrams=0.5", f"stage.module.student.{rule}")["dcd"] != with_bigrams


def test_settings_that_are_lists_have_a_name(data_root):
    assert chain(data_root, "lora=all_linear")["dcd"] != chain(data_root)["dcd"]


def test_chinese_is_measured_again_with_another_splitter(monkeypatch, data_root):
    def asked(*overrides: str) -> dict[str, object]:
        return sweep_plan.measurement(composed(data_root, *overrides))

    english, chinese = asked(), asked("data.language=zh")
    monkeypatch.setattr(sweep_plan, "cut_words_variant", lambda: "otherwise")
    assert asked() == english
    assert asked("data.language=zh") != chinese


def test_another_corpus_of_the_same_name_has_its_own_parts(data_root, tmp_path):
    make_synthetic(tmp_path / "synthetic", train=8, val=4, test=4, seed=3, shard_size=8, progress=False)
    assert not set(chain(data_root).values()) & set(chain(tmp_path).values())


def test_the_vision_tower_is_warmed_up_once(data_root):
    names = [chain(data_root, "backbone.needs_warmup=true", f"block_size={size}") for size in (4, 8)]
    assert names[0]["warmup"] == names[1]["warmup"]
    assert names[0]["pretrain"] == names[1]["pretrain"] != chain(data_root)["pretrain"]


def test_teachers_of_other_reports_are_named_after_who_uses_them(data_root):
    def job(*overrides: str):
        config = composed(data_root, *overrides)
        choice = next((one.partition("=")[2] for one in overrides if one.startswith("ablation=")), None)
        whole = OmegaConf.merge(OmegaConf.create({"hydra": {"runtime": {"choices": {"ablation": choice}}}}), config)
        return make_job(overrides, ["ablation", "sweep.stages.rad.limit_train"], whole)

    jobs = [job("ablation=dcd"), job("ablation=ce"), job("ablation=raw")]
    assert len(Progress.of(jobs).parts) == 4 + 1 + 4, "ce shares all with dcd but itself"
    found = make_cells(jobs)
    named = [(cell.objective, cell.variant) for cell in found]
    assert named == [
        ("ar", "for ce, dcd"), ("teacher", "for ce, dcd"), ("dcd", ""), ("ce", ""),
        ("ar", "for raw"), ("teacher", "for raw"), ("raw", ""),
    ]  # fmt: skip
    small = make_cells([job("ablation=dcd", "+sweep.stages.rad.limit_train=4")])
    assert [(cell.objective, cell.variant) for cell in small][-1] == ("dcd", "sweep.stages.rad.limit_train=4")
    assert small[0] == Cell(part=small[0].part, objective="ar", variant="", block_size=1, seed=0, base=small[0].part)


def test_a_teacher_leans_to_the_student_of_the_round_before(data_root):
    planned = partial(plan, data_root)
    base, teacher, plain, first, leaning, second, again, third = planned("ablation=tilted", "sweep.tilt_rounds=2")
    assert [part.name for part in (base, teacher, plain, first)] == [part.name for part in planned("ablation=ce")]
    assert planned("ablation=tilted")[-1].name == second.name, "a further round begins with the same ones"
    for stored, student, before in ((leaning, second, first), (again, third, second)):
        assert stored.student == before.checkpoint
        assert stored.before == (teacher.name, before.name)
        assert stored.config.start == student.config.start == str(teacher.checkpoint)
        assert stored.config.stage.module.tilt == student.config.stage.module.tilt == 1.0
        assert student.before == (teacher.name, stored.name)
        assert student.config.stage.module.trajectories == str(stored.folder)
    assert plain.student is None
    assert len({leaning.name, again.name, second.name, third.name}) == 4
    assert planned("ablation=tilted", "stage.module.tilt=2.0")[-2].name != leaning.name
    assert [part.stage for part in planned("ablation=tilted", "sweep.store=false")] == ["pretrain", "rad", "dcd"], "on the fly"


def test_a_teacher_that_leans_waits_for_its_student(runs, monkeypatch, data_root, tmp_path):
    one = ["block_size=4", "ablation=tilted", "seed=0"]
    assert command(monkeypatch, data_root, tmp_path, *one) == 0
    made = ["pretrain-s0", "rad-L4-s0", "trajectories-L4-s0", "dcd-L4-s0", "trajectories-L4-s0", "dcd-L4-s0"]
    assert kinds(runs.made) == made
    named = sorted((params["objective"], params["variant"]) for _, _, params, _ in cells(tmp_path).values())
    assert named == [("ar", "-"), ("ce", "for tilted"), ("teacher", "-"), ("tilted", "-")]
    assert command(monkeypatch, data_root, tmp_path, "block_size=4", "ablation=ce,tilted", "seed=0", "sweep.name=both") == 0
    assert kinds(runs.made) == made, "all was there"


def test_scores_of_another_measurement_are_not_taken(runs, data_root, tmp_path):
    part, other = (plan(data_root, f"outputs={tmp_path}", *more)[0] for more in ((), ("sweep.studies=4",)))
    assert (part.folder, part.done) == (other.folder, False)
    for one in (part, part, other):
        sweep_job.make(one)
        assert one.done
        assert one.scores["finding_f1"] == 0.08
    assert runs.made == [part.name], "measured again, not trained"
    assert not part.done


def test_mlflow_shows_the_last_measurement_and_not_the_largest(runs, monkeypatch, data_root, tmp_path):
    for version, change in ((1, 0.0), (2, -0.01), (3, 0.02)):
        monkeypatch.setattr(sweep_plan, "_MEASUREMENT", version)
        monkeypatch.setattr(sweep_job, "measure", lambda part, change=change: Runs.measure(part) | {"rouge_l": 0.5 + change})
        assert command(monkeypatch, data_root, tmp_path, *AXES) == 0
        assert {metrics["rouge_l"] for *_, metrics in cells(tmp_path).values()} == {0.5 + change}
    assert len(runs.made) == 7, "nothing was trained again"


def test_a_signal_ends_the_sweep_and_is_no_failure(runs, monkeypatch, data_root, tmp_path, capsys):
    def fail(config) -> None:
        raise pickle.loads(pickle.dumps(StoppedError(signal.SIGTERM)))  # as from a job's own process

    monkeypatch.setattr(sweep_job, "run", fail)
    one = ["block_size=4", "ablation=dcd", "seed=0", "sweep.store=false"]
    assert command(monkeypatch, data_root, tmp_path, *one) == 128 + signal.SIGTERM
    assert "start the sweep again to go on" in capsys.readouterr().err
    assert {status for status, *_ in cells(tmp_path).values()} == {"SCHEDULED"}


def test_a_part_that_is_being_made_is_not_made_twice(runs, data_root, tmp_path):
    part = plan(data_root, f"outputs={tmp_path}")[0]
    with sweep_job.exclusive(part), pytest.raises(OSError, match="another job is making pretrain-s0-"):
        sweep_job.make(part)
    sweep_job.make(part)
    assert part.done


def test_a_job_of_this_machine_ends_with_the_sweep_that_is_killed(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        "import multiprocessing, pathlib, sys, threading, time\n"
        "from echo_pl.sweeps.job import _end_with_parent\n"
        "def job():\n"
        "    threading.Thread(target=_end_with_parent, daemon=True).start()\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(multiprocessing.current_process().pid))\n"
        "    time.sleep(600)\n"
        "multiprocessing.get_context('fork').Process(target=job).start()\n"
    )
    pid_file = tmp_path / "pid"
    sweep = subprocess.Popen([sys.executable, str(script), str(pid_file)])
    until(lambda: pid_file.is_file() and pid_file.read_text() != "")
    job = int(pid_file.read_text())
    os.kill(job, 0)
    sweep.kill()
    sweep.wait()
    until(lambda: not _runs(job))


def _runs(pid: int) -> bool:
    """Return True if a process runs and is not only a zombie."""
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, f"not within {seconds} s"
        time.sleep(0.1)
