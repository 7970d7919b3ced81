"""The demo's steps as processes of their own: what comes back, what is raised, and who is ended from outside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from echo_pl.distributed.agree import open_group
from echo_pl.distributed.launch import detect
from echo_pl.sweeps.demo import STEPS, Demo, DemoSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def demo(tmp_path) -> Demo:
    settings = DemoSettings.load("quick", studies=1)
    return Demo(data="synthetic", source=None, folder=tmp_path, data_root=tmp_path, settings=settings, overrides=["block_size=4"])


def fail(message: str) -> None:
    raise ValueError(message)


def test_a_step_has_a_process_of_its_own(demo):
    assert demo.apart(os.getpid) != os.getpid()
    assert demo.apart(Path.exists, Path(__file__)) is True
    assert demo.peak_memory_gb > 0.05


def test_what_a_step_raises_is_raised(demo):
    with pytest.raises(ValueError, match="no corpus here"):
        demo.apart(fail, "no corpus here")


def test_a_step_that_is_ended_from_outside_is_named(demo):
    with pytest.raises(OSError, match="ended from outside"):
        demo.apart(os._exit, 9)


def rank_of_two(failing: int | None = None) -> int:
    launch = detect()
    open_group(launch, "cpu")
    dist.barrier()
    if launch.rank == failing:
        raise ValueError(f"rank {failing} of {launch.world_size} has failed")
    if failing is not None:
        time.sleep(600)
    return launch.rank


def test_a_step_of_two_ranks_returns_the_result_of_the_first_and_ends_with_the_one_that_fails(demo):
    assert demo.apart(rank_of_two, processes=2) == 0
    with pytest.raises(ValueError, match="rank 1 of 2 has failed"):
        demo.apart(rank_of_two, 1, processes=2)


def test_the_command_that_makes_the_figures_again(demo):
    assert demo.command == 'make demo ARGS="block_size=4"'


def test_an_evaluation_alone_needs_a_finished_demo_and_keeps_what_it_measured(demo, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"stage1.*final\.ckpt: --evaluate-only needs a demo that has finished"):
        demo.evaluate_again()
    for name in ("stage1", "stage2", "stage3-dcd", "stage3-ce"):
        checkpoint = demo.folder / "runs" / name / "checkpoints" / "final.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    (demo.folder / "summary.json").write_text(json.dumps({"seconds": {"stage1": 7.0}, "peak_memory_gb": 3.0, "rows": []}))
    given = []
    monkeypatch.setattr(demo, "finish", given.append)
    demo.evaluate_again()
    assert demo.seconds == {"stage1": 7.0}
    assert demo.peak_memory_gb == 3.0
    (checkpoints,) = given
    assert checkpoints.ar == demo.folder / "runs" / "stage1" / "checkpoints" / "final.ckpt"
    assert {objective: path.parts[-3] for objective, path in checkpoints.distilled.items()} == {
        "dcd": "stage3-dcd", "ce": "stage3-ce"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["quick", "full"])
def test_settings_of_a_demo_compose_for_every_step(demo, name):
    demo.settings = DemoSettings.load(name)
    stages = {"warmup": "warmup", "stage1": "pretrain", "stage2": "rad", "stage3": "dcd"}
    assert set(demo.settings.stages) == set(stages)
    assert set(demo.settings.seconds) <= set(STEPS)
    for step, stage in stages.items():
        config = demo.compose(f"stage={stage}", *demo.settings.stages[step])
        assert config.stage.name == stage
        assert config.block_size == 4
    with pytest.raises(ValueError, match=r"quick.yaml: .*studis"):
        DemoSettings.load("quick", studis=3)
