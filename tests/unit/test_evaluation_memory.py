"""Memory figures, and giving memory back where the C library can."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from echo_pl.io import memory

pytestmark = pytest.mark.slow


def test_the_peak_has_seen_what_was_allocated():
    held = torch.ones(20_000_000)
    assert memory.peak_memory_gb() > held.nbytes / 1e9


def test_the_peak_can_be_restarted():
    held = torch.ones(30_000_000)
    before = memory.peak_memory_gb()
    size = held.nbytes / 1e9
    del held
    if not memory.restart_peak_memory(torch.device("cpu")):
        pytest.skip("this system keeps its peaks")
    assert memory.peak_memory_gb() < before - size / 2


@pytest.mark.parametrize(("platform", "library", "calls"), [("linux", True, [0]), ("linux", False, []), ("darwin", True, [])])
def test_memory_is_returned_where_the_library_can(monkeypatch, platform, library, calls):
    made = []
    trim = {"malloc_trim": made.append} if library else {}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**trim))
    monkeypatch.setattr(memory.sys, "platform", platform)
    memory.return_free_memory()
    assert made == calls
