"""Stored trajectories: the same back, torn or foreign ones refused, and what collecting keeps and drops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted import SPECIAL, ScriptedVLM, contexts

from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.collect import collect, store_identity, usable_trajectories
from echo_pl.sampling.config import TokenChoice
from echo_pl.sampling.trajectory_store import CollectionCounts, StoreIdentity, TrajectoryStore, TrajectoryWriter
from echo_pl.structs import Trajectory

IDENTITY = StoreIdentity(
    teacher_fingerprint="cafe",
    data_fingerprint="f00d",
    block_size=4,
    confidence_threshold=0.9,
    denoising_steps=4,
    remasking="low_confidence_dynamic",
    distributions=True,
)
E = SPECIAL.eos


def trajectory(key: str, length: int, distributions: bool = True) -> Trajectory:
    generator = torch.Generator().manual_seed(length)
    target = torch.rand(length, 6, generator=generator)
    return Trajectory(
        key=key,
        block_size=4,
        token_R=torch.randint(0, 60_000, (length,), generator=generator),
        commit_step_R=torch.randint(1, 5, (length,), generator=generator),
        confidence_R=torch.rand(length, generator=generator),
        target_RV=target / target.sum(-1, keepdim=True) if distributions else None,
    )


def write(folder: Path, identity: StoreIdentity = IDENTITY) -> list[Trajectory]:
    trajectories = [trajectory(f"study-{n}", 4 * n, identity.distributions) for n in (1, 3, 2)]
    writer = TrajectoryWriter(folder, identity)
    writer.add(trajectories[:2])
    writer.add([])
    writer.add(trajectories[2:])
    writer.drop(["dropped-1"])
    writer.drop(["dropped-2", "dropped-3"])
    writer.finish(CollectionCounts(kept=3, dropped_loops=1, dropped_endless=2))
    return trajectories


@pytest.mark.parametrize("distributions", [True, False])
def test_what_was_written_is_read_back(tmp_path, distributions):
    identity = replace(IDENTITY, distributions=distributions)
    written = write(tmp_path / "store", identity)
    store = TrajectoryStore(tmp_path / "store")
    assert len(store) == 3
    assert store.identity == identity
    assert store.counts == CollectionCounts(kept=3, dropped_loops=1, dropped_endless=2)
    assert [store.get(f"dropped-{n}") for n in (1, 2, 3)] == [None, None, None]
    with pytest.raises(ValueError, match=r"no trajectory of sample 'study-9' was ever collected .* \(6 studies .*limit_train"):
        store.get("study-9")
    for one in written:
        other = store.get(one.key)
        assert other.key == one.key
        assert other.block_size == 4
        assert torch.equal(other.token_R, one.token_R)
        assert torch.equal(other.commit_step_R, one.commit_step_R)
        # Stored as float16: eleven bits.
        assert torch.allclose(other.confidence_R, one.confidence_R, atol=5e-4)
        if distributions:
            assert torch.allclose(other.target_RV.float(), one.target_RV, atol=5e-4)
        else:
            assert other.target_RV is None


def test_a_collection_that_was_cut_off_is_not_read_and_can_be_begun_anew(tmp_path):
    writer = TrajectoryWriter(tmp_path / "store", IDENTITY)
    writer.add([trajectory("study-1", 4)])
    with pytest.raises(FileNotFoundError, match=f"no trajectories in {tmp_path / 'store'}"):
        TrajectoryStore(tmp_path / "store")
    assert len(write(tmp_path / "store")) == len(TrajectoryStore(tmp_path / "store")) == 3


def test_an_existing_collection_is_not_written_over(tmp_path):
    write(tmp_path / "store")
    with pytest.raises(FileExistsError, match="store exists already"):
        TrajectoryWriter(tmp_path / "store", IDENTITY)


def test_a_torn_part_is_named(tmp_path):
    write(tmp_path / "store")
    part = tmp_path / "store" / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"part-00001.safetensors cannot be read: .*collect the trajectories anew"):
        TrajectoryStore(tmp_path / "store")
    part.unlink()
    with pytest.raises(ValueError, match=r"part-00001.safetensors cannot be read"):
        TrajectoryStore(tmp_path / "store")


def test_a_torn_index_is_named(tmp_path):
    write(tmp_path / "store")
    index = tmp_path / "store" / "index.json"
    text = index.read_text(encoding="utf-8")
    whole = json.loads(text)
    without = {name: value for name, value in whole.items() if name != "dropped"}
    for torn in (text[:40], "[]", json.dumps({"schema_version": whole["schema_version"]}), json.dumps(without)):
        index.write_text(torn, encoding="utf-8")
        with pytest.raises(ValueError, match=r"index.json.*collect the trajectories anew"):
            TrajectoryStore(tmp_path / "store")


def test_another_schema_version_is_refused(tmp_path):
    write(tmp_path / "store")
    index = tmp_path / "store" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**content, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match="schema version 99, this program reads 2"):
        TrajectoryStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher_fingerprint", "beef"),
        ("data_fingerprint", "0000"),
        ("block_size", 8),
        ("confidence_threshold", 0.85),
        ("denoising_steps", 1),
        ("remasking", "random"),
        ("grid", "absolute"),
        ("context_attention", "full"),
    ],
)
def test_a_foreign_collection_is_refused_with_both_values(tmp_path, field, value):
    write(tmp_path / "store")
    with pytest.raises(ValueError, match=rf"{field} .*{getattr(IDENTITY, field)}.* this run needs .*{value}"):
        TrajectoryStore(tmp_path / "store").check(replace(IDENTITY, **{field: value}))


def test_distributions_may_be_there_without_being_needed_but_not_the_other_way(tmp_path):
    write(tmp_path / "with")
    TrajectoryStore(tmp_path / "with").check(replace(IDENTITY, distributions=False))
    write(tmp_path / "without", replace(IDENTITY, distributions=False))
    with pytest.raises(ValueError, match="distributions False, this run needs True"):
        TrajectoryStore(tmp_path / "without").check(IDENTITY)


def teacher() -> BlockSampler:
    """Row 0 stops, row 1 falls into a loop, row 2 never ends."""
    scripts = [[10, 11, 12, 13, 14, E, 20, 21], [15, 16] * 40, list(range(20, 100))]
    config = DecodeConfig(block_size=4, max_response_tokens=32, denoising_steps=1)
    return BlockSampler(ScriptedVLM(scripts), SPECIAL, config)


def test_loops_and_endless_reports_are_dropped_and_counted():
    trajectories, counts = usable_trajectories(teacher(), contexts([4, 5, 3]), distributions=True)
    assert trajectories[0].token_R.tolist() == [10, 11, 12, 13, 14, E, 20, 21]
    assert trajectories[1:] == [None, None]
    assert counts == CollectionCounts(kept=1, dropped_loops=1, dropped_endless=1)


def test_collecting_writes_what_decoding_on_the_fly_gives(tmp_path):
    sampler, batch = teacher(), contexts([4, 5, 3])
    other = replace(batch, keys=("a", "b", "c"))
    identity = store_identity(sampler.config, "cafe", "f00d", distributions=True)
    folder, counts = collect(sampler, [batch, other], tmp_path / "store", identity)
    store = TrajectoryStore(folder)
    store.check(identity)
    assert counts == store.counts == CollectionCounts(kept=2, dropped_loops=2, dropped_endless=2)
    direct, _ = usable_trajectories(teacher(), batch, distributions=True)
    for key in ("study-0", "a"):
        stored = store.get(key)
        assert torch.equal(stored.token_R, direct[0].token_R)
        assert torch.allclose(stored.target_RV.float(), direct[0].target_RV, atol=5e-4)
    assert [store.get(key) for key in ("study-1", "study-2", "b", "c")] == [None] * 4
    with pytest.raises(ValueError, match="'study-3' was ever collected"):
        store.get("study-3")


def test_a_response_that_ends_in_the_short_block_behind_a_context_tail_keeps_its_block_size():
    recorder = TrajectoryRecorder()
    recorder.on_commit(
        rows_A=torch.tensor([0, 1]),
        block=0,
        step=1,
        committed_AL=torch.tensor([[False, False, False, True], [True] * 4]),
        token_AL=torch.tensor([[9, 9, 9, E], [10, 11, 12, E]]),
        log_probs_ALV=torch.zeros(2, 4, 20),
    )
    short, whole = recorder.trajectories(["a", "b"])
    assert short.token_R.tolist() == [E]
    assert short.block_size == whole.block_size == 4


def test_the_cache_mode_is_no_part_of_the_identity_but_the_rest_is():
    config = DecodeConfig(block_size=4, max_response_tokens=32)
    identity = store_identity(config, "t", "d", True)
    assert store_identity(replace(config, kv_cache="vanilla"), "t", "d", True) == identity
    for changes in (
        {"block_size": 8},
        {"confidence_threshold": 0.5},
        {"denoising_steps": 2},
        {"remasking": "random"},
        {"grid": "absolute"},
        {"context_attention": "full"},
        {"remasking": "entropy_bounded", "entropy_bound": 0.1},
        {"token_choice": TokenChoice(temperature=0.5)},
        {"token_choice": TokenChoice(top_k=3)},
        {"token_choice": TokenChoice(top_p=0.5)},
    ):
        assert store_identity(replace(config, **changes), "t", "d", True) != identity, changes
