"""`echo-pl bench train` in miniature: a row per variant, counted savings, and the layout of earlier work."""

from __future__ import annotations

import json

import mlflow
import pytest
import torch
from commands import command
from models import SPECIAL, exact_norms, make_batch, small_vlm

from echo_pl.bench.benchmark import load_benchmark
from echo_pl.bench.roofline import QWEN2_5_VL_7B, ModelShape
from echo_pl.bench.train import TrainBenchmark, arithmetic
from echo_pl.bench.training_step import full_duplication, full_duplication_positions
from echo_pl.diffusion.sequence import BlockLayout, block_context, block_response, rad_sequence

pytestmark = pytest.mark.slow

main = command("bench", "train")

SIZES = {"width": 32, "layers": 2, "heads": 2, "key_heads": 1, "mlp_width": 48, "vocabulary": 64}
FIELDS = {
    "model",
    "context",
    "variant",
    "seconds",
    "peak_memory_mb",
    "supervised_tokens_per_second",
    "speedup_over_full_duplication",
}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("rad")
    sizes = [f"sizes.d128.{name}={value}" for name, value in SIZES.items()]
    overrides = [
        *sizes, "models=[d128]", "contexts=[26,40]", "response=16", "copies=[2]", "repetitions=2", "threads=1", f"out={out}",
        f"mlflow=sqlite:///{out}/mlflow.db",
    ]  # fmt: skip
    assert main(overrides) == 0
    return json.loads((out / "rad.json").read_text()), out


def test_a_row_for_every_variant_and_context(record):
    rows = record[0]["rows"]
    names = list(load_benchmark(TrainBenchmark, "rad", ["copies=[2]"]).variants(26))
    assert [(row["context"], row["variant"]) for row in rows] == [(P, name) for P in (26, 40) for name in names]
    for row in rows:
        assert set(row) >= FIELDS
        assert row["seconds"] > 0
        assert row["supervised_tokens_per_second"] == pytest.approx(row["supervised_tokens"] / row["seconds"])
        memory, supervised = row["peak_memory_mb"], row["supervised_tokens"]
        if memory is not None:  # None: the system does not tell
            assert row["peak_memory_kb_per_supervised_token"] == pytest.approx(1e3 * memory / supervised)
        reference = next(r for r in rows if r["context"] == row["context"] and r["variant"] == "full_duplication")
        if row["variant"] == "rad_pixels":
            assert row["speedup_over_full_duplication"] is None
        else:
            assert row["speedup_over_full_duplication"] == pytest.approx(reference["seconds"] / row["seconds"])


def test_sequences_are_as_long_as_the_method_says_and_supervise_what_it_says(record):
    P, R, B = 26, 16, 2
    rows = {row["variant"]: row for row in record[0]["rows"] if row["context"] == P}
    assert rows["ar"]["tokens"] == P + R
    assert rows["full_duplication"]["tokens"] == 2 * (P + R)
    assert rows["rad_split"]["tokens"] == rows["rad_dense"]["tokens"] == P + 2 * R
    assert rows["rad_split_k2"]["tokens"] == P + 3 * R
    assert rows["ar"]["supervised_tokens"] == B * R
    same = {rows[name]["supervised_tokens"] for name in ("full_duplication", "rad_dense", "rad_split", "rad_stored_features")}
    assert len(same) == 1, "the same noise in every layout"
    assert 0 < same.pop() < B * R


def test_table_and_mlflow_run_are_written(record):
    made, out = record
    text = (out / "rad.md").read_text()
    assert text.count("\n| d128 |") == len(made["rows"]) + len(made["arithmetic"])
    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("echo_pl-bench").experiment_id])
    assert run.data.metrics["d128/ar-context26/seconds"] == pytest.approx(made["rows"][0]["seconds"])


def test_the_published_saving_is_the_dense_attention_s():
    """The method's stage 2: 72.3 % of attention (3.61x), and 1.9 to 2.05x of the whole language model of the 7B."""
    figures = arithmetic(2870, 161, QWEN2_5_VL_7B)
    assert figures["attention_dense"] == pytest.approx(3.61, abs=0.01)
    assert 1.89 < figures["total_sparse"] < figures["total_dense"] < 2.06
    assert figures["attention_sparse"] == pytest.approx(
        (2870**2 + 2 * 2870 * 161 + 161**2) / (2870**2 / 2 + 2 * 2870 * 161 + 161**2)
    )


def test_where_nothing_but_attention_costs_all_of_it_is_saved():
    shape = ModelShape(width=0, layers=1, heads=1, key_heads=1, head_size=1, mlp_width=0, vocabulary=1, bytes_per_weight=2)
    figures = arithmetic(100, 10, shape)
    assert figures["total_dense"] == figures["attention_dense"] == pytest.approx(220**2 / 120**2)


@pytest.mark.parametrize("context_attention", ["causal", "block_causal", "full"])
def test_full_duplication_has_rad_s_logits(context_attention):
    """Timed is what earlier work does: on the response the same function. float64 with norms in float64."""
    vlm = exact_norms(small_vlm(torch.float64))
    batch = make_batch([12, 12], [12, 12], dtype=torch.float64)
    layout = BlockLayout(block_size=4, context_attention=context_attention)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)
    clean = blocked.clean_ids_BR
    noisy = torch.where(torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) < 0.5, SPECIAL.mask, clean)
    sequence = rad_sequence(blocked, noisy[:, None])
    ids, rule = full_duplication(blocked, noisy)
    both = torch.arange(len(batch)).repeat_interleave(2)
    images = batch.images.chosen(both)
    with torch.no_grad():
        positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
        ours = vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images)
        doubled = full_duplication_positions(vlm, sequence, batch.image_grid_thw)
        theirs = vlm(ids, doubled, rule, images=images)
    assert float((ours[:, 12:24] - theirs[:, 12:24]).abs().max()) < 1e-10
    assert float((ours[:, 24:] - theirs[:, 36:]).abs().max()) < 1e-10
    assert float((theirs[:, :12] - theirs[:, 24:36]).abs().max()) < 1e-10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("contexts=[]", "contexts and batch_size must be positive"),
        ("response=12", "response must be a multiple of block_size, got 12 and 8"),
        ("copies=[1]", r"copies must be at least 2 .*got \[1\]"),
        ("precision=16", "precision must be 32-true or bf16-mixed, got '16'"),
    ],
)
def test_an_invalid_grid_is_an_error(override, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(TrainBenchmark, "rad", [override])


def test_errors_are_one_line(capsys):
    assert main(["response=12", "models=[d128]"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "echo-pl: response must be a multiple of block_size, got 12 and 8"
