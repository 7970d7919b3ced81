"""Training on paper, held against arithmetic that is done here by hand and against the memory of a step that is carried out."""

from __future__ import annotations

import pytest
import torch

from echo_pl.bench.models import BenchModel
from echo_pl.bench.plan import SEVEN_B, builder, estimate, steps_of, token_statistics
from echo_pl.bench.scale import Machine, memory_per_gpu, parts_of, traffic_per_step
from echo_pl.bench.scale_check import Case, measure_apart, predict
from echo_pl.bench.step_trace import StepTokens, trace_step, trace_tower
from echo_pl.data.loading.datamodule import ReportDataModule

pytestmark = pytest.mark.slow

MODEL = BenchModel(width=64, layers=3, heads=2, key_heads=1, mlp_width=256, vocabulary=512, dtype="float32")


def test_the_7b_has_its_published_number_of_parameters():
    parts = parts_of(builder(SEVEN_B, 152064)[0])
    assert (parts.total, parts.tower) == (8_292_166_656, 676_550_144)
    assert parts.layers == 28
    assert parts.root == 2 * 152064 * 3584 + 3584


@pytest.mark.parametrize(("stage", "copies", "length"), [("pretrain", 1, 48 + 16), ("rad", 1, 48 + 32), ("rad", 3, 48 + 64)])
def test_operations_are_those_of_the_matrices_and_of_attention(stage, copies, length):
    tokens = StepTokens(batch_size=2, context=48, response=16, block_size=8, noise_copies=copies)
    assert tokens.length(stage) == length
    traced = trace_step(
        lambda: MODEL.trainable("split"),
        MODEL.special,
        stage,
        tokens,
        precision="32-true",
        checkpointing=False,
        keep_gradients=True,
    )
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 256  # q, k, v; output; gate, up, down
    linear = 3 * 2 * 3 * layer * 2 * length  # forward and two in the backward, 3 layers, 2 studies
    head = 3 * 2 * 64 * 512 * 2 * tokens.supervised(stage)
    responses = length - 48
    pairs = 48 * 48 + responses * length
    attention = 2 * 3 * 2 * 2 * 32 * pairs * (2 + 5)  # studies, layers, operations, heads x size; 2 products forward, 5 backward
    assert traced.flops == pytest.approx(linear + head + attention, rel=0.02)


def test_checkpointing_keeps_a_layer_s_input():
    tokens = StepTokens(batch_size=1, context=1024, response=32)

    def live(layers: int, checkpointing: bool) -> int:
        model = BenchModel(width=64, layers=layers, heads=2, key_heads=1, mlp_width=256, vocabulary=64, dtype="float32")
        return trace_step(
            lambda: model.trainable("split"), model.special, "rad", tokens, precision="bf16-true", checkpointing=checkpointing,
            keep_gradients=False,
        ).forward_backward  # fmt: skip

    per_layer = (live(6, True) - live(4, True)) / 2
    assert per_layer == pytest.approx(tokens.length("rad") * 64 * 2, rel=0.05)
    assert (live(6, False) - live(4, False)) / 2 > 10 * per_layer


@pytest.mark.parametrize(("layout", "ranks"), [("distillation", 1), ("rad", 2), ("tower_frozen", 1)])
def test_a_step_needs_the_memory_that_was_counted(layout, ranks):
    """Within 15 %, in processes that get every block of memory from the system. Only Linux tells."""
    case = Case(
        model="tower" if layout == "tower_frozen" else "d128", context=1024, precision="32-true", layout=layout, copies=1,
        checkpointing=False, batch_size=2, ranks=ranks,
    )  # fmt: skip
    try:
        measured = measure_apart(case)
    except OSError as error:
        if "needs Linux" in str(error):
            pytest.skip("this system does not report the peak memory of a process")
        raise
    assert predict(case) == pytest.approx(measured, rel=0.15)


def test_shards_shrink_with_ranks_and_what_is_gathered_does_not():
    parts = parts_of(lambda: MODEL.trainable("split"))
    eight, sixteen = (memory_per_gpu(parts, "dcd", gpus, 1e6, 2e6) for gpus in (8, 16))
    for name in ("weights", "optimizer", "teacher", "step"):
        assert getattr(eight, name) == 2 * getattr(sixteen, name) > 0
    for name in ("gathered", "activations", "vision"):
        assert getattr(eight, name) == getattr(sixteen, name) > 0
    assert eight.reduction - 4 * parts.language / 8 == sixteen.reduction - 4 * parts.language / 16 == 8 * parts.root
    assert memory_per_gpu(parts, "dcd", 8, 1e6, 2e6, teacher=False).teacher == 0
    assert memory_per_gpu(parts, "pretrain", 8, 0, 0).optimizer == parts.total


def test_the_worst_moment_counts():
    parts = parts_of(lambda: MODEL.trainable("split"))
    small, large = (memory_per_gpu(parts, "rad", 2, activations, 0.0) for activations in (0.0, 1e9))
    assert small.peak == small.always + max(small.gathered, small.reduction, small.step)
    assert large.peak == large.always + large.gathered + 1e9


def test_traffic_is_weights_and_gradients():
    parts = parts_of(lambda: MODEL.trainable("split"))
    assert traffic_per_step(parts, "rad", 1) == 0
    # Weights in bfloat16 twice (root and tower once), float32 gradients of what is trained.
    whole = 2 * (2 * parts.layer * parts.layers + parts.root + parts.tower) + 4 * parts.language
    assert traffic_per_step(parts, "rad", 4) == pytest.approx(whole * 3 / 4)


def test_the_tower_is_linear_in_layers():
    tower = trace_tower(32, 64, 2, torch.float32)
    assert tower.training(10, 4, False) - tower.training(10, 2, False) == pytest.approx(20 * tower.layer)
    assert tower.training(10, 4, True) < tower.training(10, 4, False)


def test_the_slowest_link_counts():
    rows = estimate(
        {**SEVEN_B, "width": 64, "layers": 2, "heads": 2, "key_heads": 1, "mlp_width": 128, "vision_width": 32, "vision_layers": 2,
         "vision_heads": 2, "vision_mlp_width": 64},
        512, StepTokens(batch_size=2, context=64, response=16), [Machine(gpus=8), Machine(gpus=16)],
        {"pretrain": 1600, "rad": 160, "dcd": 160}, checkpointing=True, stored_features=True, stored_trajectories=True,
    )  # fmt: skip
    assert [(row["stage"], row["gpus"]) for row in rows] == [(s, g) for s in ("pretrain", "rad", "dcd") for g in (8, 16)]
    inside, across = rows[2], rows[3]
    assert across["traffic_seconds"] > 5 * inside["traffic_seconds"]
    assert (rows[0]["steps"], inside["steps"], across["steps"]) == (100, 10, 5)
    assert inside["vision"] == 0 < rows[0]["vision"]
    always = inside["weights"] + inside["optimizer"] + inside["teacher"]
    worst = max(inside["gathered"] + inside["activations"], inside["reduction"], inside["step"])
    assert inside["memory_gb"] == pytest.approx(always + worst)


def test_lengths_of_a_corpus_are_what_training_sees(medium_data):
    found = token_statistics([f"data_root={medium_data}", "data.limit_train=33"])
    data = ReportDataModule(root=medium_data / "synthetic", limit_train=33)
    batches = list(data.train_batches_once(1))
    responses = [int(batch.response_lengths_B) for batch in batches]
    assert found.studies == len(batches) == 33
    assert (found.context_longest, found.context_mean) == (int(batches[0].context_lengths_B),) * 2, "one image of one size"
    assert found.response_longest == max(responses)
    assert found.response_mean == pytest.approx(sum(responses) / 33)
    given = StepTokens(batch_size=2, context=1, response=8, block_size=16)
    longest, usual = steps_of(found, given)
    assert longest.response == -(-max(responses) // 16) * 16 >= usual.response
    assert longest.context == usual.context == found.context_longest


def test_memory_is_for_the_longest_and_time_for_the_usual():
    sizes = {**SEVEN_B, "width": 64, "layers": 2, "heads": 2, "key_heads": 1, "mlp_width": 128, "vision_width": 32,
             "vision_layers": 2, "vision_heads": 2, "vision_mlp_width": 64}  # fmt: skip
    longest, usual = (StepTokens(batch_size=2, context=context, response=16) for context in (128, 64))
    options = {"checkpointing": True, "stored_features": True, "stored_trajectories": True}
    studies = {"pretrain": 1600, "rad": 160, "dcd": 160}
    both, long, short = (
        estimate(sizes, 512, tokens, [Machine(gpus=8)], studies, typical=typical, **options)
        for tokens, typical in ((longest, usual), (longest, None), (usual, None))
    )
    for mixed, large, small in zip(both, long, short, strict=True):
        assert mixed["memory_gb"] == large["memory_gb"] > small["memory_gb"]
        assert mixed["tflop_per_step"] == small["tflop_per_step"] < large["tflop_per_step"]
