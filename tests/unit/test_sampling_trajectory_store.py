"""Stored trajectories: the same back, torn or foreign ones rejected, and what collecting keeps and drops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted import SPECIAL, ScriptedVLM, contexts

from echo_pl.diffusion.top_targets import top_targets
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.bigrams import Bigrams, stored_bigrams
from echo_pl.sampling.collect import collect, store_identity, usable_trajectories
from echo_pl.sampling.config import TokenChoice
from echo_pl.sampling.trajectory_store import CollectionCounts, CollectionPlan, StoreIdentity, TrajectoryStore, stored_tokens
from echo_pl.sampling.trajectory_writer import TrajectoryWriter
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
PLAN = CollectionPlan(studies=6, batches=3, batch_size=2)


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
    writer = TrajectoryWriter(folder, identity, PLAN)
    for part in writer.missing():
        write_part(writer, part, trajectories)
    assert writer.finish() == (folder, CollectionCounts(kept=3, dropped_loops=1, dropped_endless=2))
    return trajectories


def write_part(writer: TrajectoryWriter, part: int, trajectories: list[Trajectory]) -> None:
    """Two trajectories, none, and one; the second part is all dropped."""
    mine = {0: trajectories[:2], 1: [], 2: trajectories[2:]}[part]
    dropped = {0: [], 1: ["dropped-1", "dropped-2"], 2: ["dropped-3"]}[part]
    loops = int(part == 1)
    writer.write(part, mine, dropped, CollectionCounts(kept=len(mine), dropped_loops=loops, dropped_endless=len(dropped) - loops))


@pytest.mark.parametrize("distributions", [True, False])
def test_written_trajectories_are_read_back(tmp_path, distributions):
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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_collection_is_not_read_and_is_continued(tmp_path):
    trajectories = write(tmp_path / "whole")
    writer = TrajectoryWriter(tmp_path / "store", IDENTITY, PLAN)
    write_part(writer, 2, trajectories)
    (tmp_path / "store.part" / "part-00000.safetensors.partial").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match=f"no trajectories in {tmp_path / 'store'}"):
        TrajectoryStore(tmp_path / "store")
    with pytest.raises(ValueError, match=r"2 of 3 parts are not in .*store.part yet, the first is 0"):
        writer.finish()
    again = TrajectoryWriter(tmp_path / "store", IDENTITY, PLAN)
    assert again.missing() == [0, 1]
    write(tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert not (tmp_path / "store.part").exists()


@pytest.mark.parametrize(
    ("identity", "plan", "message"),
    [
        ({"teacher_fingerprint": "beef"}, {}, "teacher_fingerprint 'cafe', this one is of 'beef'"),
        ({"kept_tokens": 4}, {}, "kept_tokens 0, this one is of 4"),
        ({}, {"batch_size": 3}, "batch_size 2, this one is of 3"),
        ({}, {"studies": 7}, "studies 6, this one is of 7"),
        ({}, {"batches_per_part": 2}, "batches_per_part 1, this one is of 2"),
    ],
)
def test_an_unfinished_collection_of_something_else_raises(tmp_path, identity, plan, message):
    TrajectoryWriter(tmp_path / "store", IDENTITY, PLAN)
    with pytest.raises(ValueError, match=f"unfinished collection of {message}; remove .*store.part"):
        TrajectoryWriter(tmp_path / "store", replace(IDENTITY, **identity), replace(PLAN, **plan))


def test_a_folder_without_a_collection_is_not_changed(tmp_path):
    (tmp_path / "store.part").mkdir()
    (tmp_path / "store.part" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"store.part is not an unfinished collection .*; remove .* or collect into"):
        TrajectoryWriter(tmp_path / "store", IDENTITY, PLAN)
    assert contents(tmp_path / "store.part") == {"notes.txt": b"mine"}


def test_a_damaged_part_is_named_before_the_index_is_written(tmp_path):
    writer = TrajectoryWriter(tmp_path / "store", IDENTITY, PLAN)
    for part in writer.missing():
        write_part(writer, part, [trajectory(f"study-{n}", 4 * n) for n in (1, 3, 2)])
    (tmp_path / "store.part" / "part-00001.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"part-00001.safetensors cannot be read .* remove it and start the collection again"):
        writer.finish()
    assert not (tmp_path / "store").exists()


def test_the_likeliest_tokens_come_back_as_they_were(tmp_path):
    identity = replace(IDENTITY, kept_tokens=2)
    whole = [trajectory(f"study-{n}", 4 * n) for n in (1, 3, 2)]
    tops = [replace(t, target_RV=None, top=top_targets(t.target_RV, 2)) for t in whole]
    writer = TrajectoryWriter(tmp_path / "store", identity, PLAN)
    for part in writer.missing():
        write_part(writer, part, tops)
    writer.finish()
    store = TrajectoryStore(tmp_path / "store")
    store.check(IDENTITY)
    store.check(replace(identity, distributions=False))
    for one, full in zip(tops, whole, strict=True):
        stored = store.get(one.key)
        assert stored.target_RV is None
        assert torch.equal(stored.top.token_MK, one.top.token_MK)
        assert torch.equal(stored.top.probability_MK, full.target_RV.gather(1, one.top.token_MK))
        assert torch.allclose(stored.top.tail_M, 1 - one.top.probability_MK.sum(-1), atol=1e-6)


@pytest.mark.parametrize("kept", [1, 5, 1000])
def test_recording_the_top_is_the_top_of_what_is_recorded(kept):
    whole, counts = usable_trajectories(teacher(), contexts([4, 5, 3]), distributions=True)
    tops, also = usable_trajectories(teacher(), contexts([4, 5, 3]), distributions=True, top=kept)
    assert counts == also
    assert tops[1:] == [None, None]
    expected = top_targets(whole[0].target_RV, kept)
    assert torch.equal(tops[0].token_R, whole[0].token_R)
    assert tops[0].target_RV is None
    assert torch.equal(tops[0].top.token_MK, expected.token_MK)
    assert torch.equal(tops[0].top.probability_MK, expected.probability_MK)
    assert torch.equal(tops[0].top.tail_M, expected.tail_M)


def test_an_existing_collection_is_not_written_over(tmp_path):
    write(tmp_path / "store")
    with pytest.raises(FileExistsError, match="store exists already"):
        TrajectoryWriter(tmp_path / "store", IDENTITY, PLAN)


def test_a_torn_part_is_named(tmp_path):
    write(tmp_path / "store")
    part = tmp_path / "store" / "part-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"part-00002.safetensors cannot be read: .*collect the trajectories again"):
        TrajectoryStore(tmp_path / "store")
    part.unlink()
    with pytest.raises(ValueError, match=r"part-00002.safetensors cannot be read"):
        TrajectoryStore(tmp_path / "store")


def test_a_torn_index_is_named(tmp_path):
    write(tmp_path / "store")
    index = tmp_path / "store" / "index.json"
    text = index.read_text(encoding="utf-8")
    whole = json.loads(text)
    without = {name: value for name, value in whole.items() if name != "dropped"}
    for torn in (text[:40], "[]", json.dumps({"schema_version": whole["schema_version"]}), json.dumps(without)):
        index.write_text(torn, encoding="utf-8")
        with pytest.raises(ValueError, match=r"index.json.*collect the trajectories again"):
            TrajectoryStore(tmp_path / "store")


def test_another_schema_version_raises(tmp_path):
    write(tmp_path / "store")
    index = tmp_path / "store" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**content, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match="schema version 99, this program reads 3"):
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
def test_a_foreign_collection_raises_with_both_values(tmp_path, field, value):
    write(tmp_path / "store")
    with pytest.raises(ValueError, match=rf"{field} .*{getattr(IDENTITY, field)}.* this run needs .*{value}"):
        TrajectoryStore(tmp_path / "store").check(replace(IDENTITY, **{field: value}))


def test_stored_distributions_need_not_be_used_but_missing_ones_raise(tmp_path):
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


def test_collected_trajectories_are_those_decoded_on_the_fly(tmp_path):
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


def test_a_response_that_ends_in_the_short_first_block_keeps_its_block_size():
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
        {"denoising_steps": 1, "gate": 0.5},
    ):
        assert store_identity(replace(config, **changes), "t", "d", True) != identity, changes


def test_tokens_alone_are_those_of_the_store(tmp_path):
    written = write(tmp_path / "store")
    identity, reports = stored_tokens(tmp_path / "store")
    assert identity == IDENTITY
    assert [report.tolist() for report in reports] == [trajectory.token_R.tolist() for trajectory in written]


def test_bigrams_are_counted_in_what_is_stored(tmp_path, caplog):
    written = write(tmp_path / "store")
    found = stored_bigrams(tmp_path / "store", 0.5, 60_000, "f00d")
    expected = Bigrams.count([t.token_R for t in written], 60_000, 0.5)
    assert found.weight == 0.5
    assert torch.equal(found.pair_N, expected.pair_N)
    assert torch.equal(found.log_ratio_N, expected.log_ratio_N)
    assert not caplog.records
    stored_bigrams(tmp_path / "store", 0.5, 60_000, "beef")
    assert "is of data f00d; this is beef: their token ids must mean the same" in caplog.text


def test_bigrams_that_cannot_be_counted_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trajectories in .*nowhere"):
        stored_bigrams(tmp_path / "nowhere", 0.5, 9, "f00d")
    write(tmp_path / "store")
    with pytest.raises(
        ValueError, match=r"no bigrams from .*store: reports hold tokens .* the vocabulary has 9: another tokenizer made them"
    ):
        stored_bigrams(tmp_path / "store", 0.5, 9, "f00d")
    (tmp_path / "store" / "part-00002.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"part-00002.safetensors cannot be read: .*; collect the trajectories again"):
        stored_bigrams(tmp_path / "store", 0.5, 60_000, "f00d")
