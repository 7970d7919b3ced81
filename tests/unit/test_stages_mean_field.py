"""The mean-field gap in stage 3's validation: on the first batches, the teacher asked once, nothing of training touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import TEXT, decoding_vlm, make_batch, small_vlm
from stage_parts import dcd

from echo_pl.sampling import DecodeConfig
from echo_pl.stages.dcd import DCDModule
from echo_pl.stages.mean_field import GapCheck
from echo_pl.structs import Batch

CONTEXTS = [9, 12, 11, 14]


def batches() -> list[Batch]:
    return [make_batch(CONTEXTS, [10, 7, 5, 6], seed=seed, dtype=torch.float64) for seed in (3, 4, 5)]


def stage(student_is_teacher: bool, generation_batches: int = 2) -> DCDModule:
    config = DecodeConfig(block_size=4, max_response_tokens=20, confidence_threshold=0.5)
    module = dcd(TEXT, Path("teacher.ckpt"), decode=config, generation_batches=generation_batches)
    module.vlm = decoding_vlm() if student_is_teacher else small_vlm(torch.float64, seed=5, sharp=8.0)
    object.__setattr__(module, "teacher", decoding_vlm().requires_grad_(False))
    return module


def validated(module: DCDModule, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda scores, **_: logged.update(scores))
    monkeypatch.setattr(module.generation, "update", lambda *_: None)
    monkeypatch.setattr(module.generation, "compute", dict)
    module.on_validation_epoch_start()
    with torch.no_grad():
        for index, batch in enumerate(batches()):
            # Keys of their own, as the studies of a corpus have.
            keyed = Batch(**{**vars(batch), "keys": tuple(f"{key}-{index}" for key in batch.keys)})
            module.validation_step(keyed, index)
    module.on_validation_epoch_end()
    return logged


def test_the_student_s_gap_is_measured_each_time_and_the_teacher_s_once(monkeypatch):
    module = stage(student_is_teacher=False)
    asked = []
    decode = module.decode_teacher
    monkeypatch.setattr(module, "decode_teacher", lambda batch: asked.append(batch.keys) or decode(batch))
    state = torch.get_rng_state()
    first = validated(module, monkeypatch)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(asked) == 2, "the first batches only"
    gaps = {"student": [], "teacher": []}
    for batch in batches()[:2]:
        found = decode(batch)
        gaps["student"].append(module.mean_field_gaps(module.model, batch, found))
        gaps["teacher"].append(module.mean_field_gaps(module.teacher, batch, found))
    for name, own in (("val/mean_field_gap", "student"), ("val/mean_field_gap_teacher", "teacher")):
        assert first[name] == pytest.approx(float(torch.cat(gaps[own]).mean()), rel=1e-6)
    assert first["val/mean_field_gap"] > first["val/mean_field_gap_teacher"] > 0
    assert validated(module, monkeypatch) == first
    assert len(asked) == 2, "neither teacher nor studies change"
    assert module.phase_1.dropped == {"loops": 0, "endless": 0}, "what training counts is not touched"


def test_a_student_that_is_the_teacher_has_its_gap(monkeypatch):
    found = validated(stage(student_is_teacher=True), monkeypatch)
    assert found["val/mean_field_gap"] == pytest.approx(found["val/mean_field_gap_teacher"], rel=1e-9)


def test_no_batches_no_gap(monkeypatch):
    assert validated(stage(False, generation_batches=0), monkeypatch) == {}


def test_no_usable_trajectory_is_no_gap():
    check = GapCheck(1)
    check.start(torch.device("cpu"))
    none = torch.zeros(0)
    check.update(make_batch([9], [5]), 0, decode=lambda: [None], student=lambda _: none, teacher=lambda _: none)
    assert check.compute() == {}


def test_the_gap_survives_a_batch_with_dropped_trajectories():
    module = stage(student_is_teacher=False)
    batch = batches()[0]
    found = module.decode_teacher(batch)
    assert any(t is not None for t in found)
    assert module.mean_field_gaps(module.model, batch, [None] * len(batch)).shape == (0,)
