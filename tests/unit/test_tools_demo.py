"""The demo's steps as processes of their own: what comes back, what is raised, and who is ended from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echo_pl.tools.demo import Demo


@pytest.fixture
def demo(tmp_path) -> Demo:
    return Demo(
        data="synthetic", source=None, folder=tmp_path, data_root=tmp_path, studies=1, trajectories=1, overrides=["block_size=4"]
    )


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


def test_the_command_that_makes_the_figures_again(demo):
    assert demo.command == 'make demo ARGS="block_size=4"'
