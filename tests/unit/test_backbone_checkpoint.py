"""Hand-over of weights: all of them or an error that names the file and the way out."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import SPECIAL, VOCABULARY
from stage_parts import BACKBONE, record, write_checkpoint

from echo_pl.backbone.checkpoint import (
    RECORD_KEY,
    StageRecord,
    load_weights,
    read_checkpoint,
    record_dict,
)
from echo_pl.backbone.vlm import VLM, weights_fingerprint


def build(seed: int = 0, **sizes) -> VLM:
    return replace(BACKBONE, seed=seed, **sizes).build(SPECIAL, VOCABULARY)


@pytest.fixture(scope="module")
def saved() -> VLM:
    return build(seed=1)


@pytest.fixture
def path(tmp_path, saved) -> Path:
    return write_checkpoint(tmp_path / "stage.ckpt", saved, record("rad", mlflow_run_id="abc"))


def test_every_weight_is_loaded(path, saved):
    vlm = build(seed=2)
    assert load_weights(vlm, path, ("rad",), block_size=8) == record("rad", mlflow_run_id="abc")
    own, theirs = vlm.state_dict(), saved.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def change(path: Path, **changes: torch.Tensor | None) -> Path:
    """Replace weights (None: leave out)."""
    content = torch.load(path, weights_only=True)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del content["state_dict"][key]
        else:
            content["state_dict"][key] = value
    torch.save(content, path)
    return path


HEAD = "vlm__network__lm_head__weight"


def test_a_missing_weight_is_an_error(path):
    with pytest.raises(ValueError, match=r"stage.ckpt \(a tiny\) does not fit .* 1 weights missing \['network.lm_head.weight'\]"):
        load_weights(build(), change(path, **{HEAD: None}), ("rad",))


def test_a_weight_without_a_place_is_an_error(path):
    with pytest.raises(ValueError, match=r"1 without a place \['network.extra'\]; is it another backbone"):
        load_weights(build(), change(path, vlm__network__extra=torch.zeros(1)), ("rad",))


def test_another_shape_is_an_error_and_changes_nothing(path):
    vlm = build()
    before = weights_fingerprint(vlm)
    change(path, **{HEAD: torch.zeros(VOCABULARY + 1, BACKBONE.width)})
    with pytest.raises(ValueError, match=r"lm_head.weight is \(97, 32\) there and \(96, 32\) here; is it another backbone"):
        load_weights(vlm, path, ("rad",))
    assert weights_fingerprint(vlm) == before


def test_another_backbone_is_an_error(path):
    with pytest.raises(ValueError, match=r"stage.ckpt \(a tiny\) does not fit the model: \d+ weights missing"):
        load_weights(build(layers=3), path, ("rad",))


def test_what_is_not_of_the_model_is_left_alone(path):
    """A stage may keep weights of its own beside the model: the warm-up's classifier."""
    load_weights(build(), change(path, classifier__weight=torch.zeros(3)), ("rad",))


def test_another_stage_is_an_error(path):
    with pytest.raises(
        ValueError, match=r"stage.ckpt is a checkpoint of stage 'rad', needed is one of 'warmup' or 'pretrain'; give start="
    ):
        load_weights(build(), path, ("warmup", "pretrain"))


def test_another_block_size_is_an_error(path):
    with pytest.raises(ValueError, match=r"stage.ckpt was trained with block_size 8, asked for is 4; give block_size=8"):
        load_weights(build(), path, ("rad",), block_size=4)


def test_a_missing_file_names_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere.ckpt; give start="):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_file_is_named(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"stage.ckpt cannot be read as a checkpoint \(torn or foreign\)"):
        read_checkpoint(path)


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint ran')",)


@pytest.mark.parametrize("content", [b"just text", pickle.dumps({"a": 1}), pickle.dumps(Harmful()), b"\x80", b"PK\x03\x04 no zip"])
def test_a_foreign_file_is_rejected_and_none_of_its_code_runs(tmp_path, content):
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign.ckpt"):
        read_checkpoint(path)


def test_code_inside_a_checkpoint_is_rejected(tmp_path):
    path = tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {}, RECORD_KEY: {"stage": "rad"}, "callbacks": Harmful()}, path)
    with pytest.raises(ValueError, match=r"hostile.ckpt cannot be read as a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {RECORD_KEY: {"stage": "rad", "backbone": "tiny"}},
        {"state_dict": {}, RECORD_KEY: "rad"},
        {"state_dict": {}, RECORD_KEY: {"backbone": "tiny"}},
        [1, 2],
    ],
)
def test_somebody_else_s_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"other.ckpt is not a checkpoint of echo_pl"):
        read_checkpoint(path)


def test_records_of_a_newer_version_may_say_more(tmp_path):
    path = tmp_path / "newer.ckpt"
    torch.save({"state_dict": {}, RECORD_KEY: {**record_dict(record("rad")), "colour": "blue"}}, path)
    assert read_checkpoint(path)[0] == record("rad")
    assert StageRecord(stage="warmup", backbone="tiny").block_size is None


def test_the_fingerprint_follows_every_weight(saved):
    one = weights_fingerprint(saved)
    assert one == weights_fingerprint(build(seed=1))
    assert one != weights_fingerprint(build(seed=2))
    other = build(seed=1)
    with torch.no_grad():
        other.network.lm_head.weight[0, 0] += 1e-6
    assert one != weights_fingerprint(other)


def test_the_same_shapes_with_other_heads_are_rejected(tmp_path):
    sizes = {"width": 64, "key_heads": 1, "heads": 2}
    saved = build(**sizes)
    content = {"state_dict": {f"vlm.{name}": value for name, value in saved.state_dict().items()}}
    torch.save({**content, RECORD_KEY: record_dict(record("rad"), saved)}, tmp_path / "two.ckpt")
    load_weights(build(**sizes), tmp_path / "two.ckpt", ("rad",))
    other = build(width=64, key_heads=2, heads=4)
    assert {name: value.shape for name, value in other.state_dict().items()} == {
        name: value.shape for name, value in saved.state_dict().items()
    }
    with pytest.raises(ValueError, match=r"two.ckpt was trained with heads 2, the model of this configuration has 4"):
        load_weights(other, tmp_path / "two.ckpt", ("rad",))
