"""`echo-pl bench decode` in miniature: rows, counts, one message for bad input; and the roofline by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import mlflow
import pytest
import torch
from commands import command

from echo_pl.bench import decode_report as bench
from echo_pl.bench.benchmark import load_benchmark
from echo_pl.bench.decode import DecodeBenchmark, Timing
from echo_pl.bench.machine import Limits
from echo_pl.bench.models import NEVER_ENDS, BenchModel, text_prompts
from echo_pl.bench.roofline import Forward, ModelShape, calculation, least_autoregressive, least_one_step, least_seconds
from echo_pl.structs import DecodeResult

pytestmark = pytest.mark.slow

main = command("bench", "decode")

RESULT = DecodeResult(
    tokens=(),
    stopped_B=torch.zeros(0, dtype=torch.bool),
    looped_B=torch.zeros(0, dtype=torch.bool),
    nfe_B=torch.zeros(0, dtype=torch.long),
    kv_write_nfe_B=torch.zeros(0, dtype=torch.long),
    written_B=torch.zeros(0, dtype=torch.long),
    forwards=0,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    block_size=1,
)
SIZES = {"width": 32, "layers": 2, "heads": 2, "key_heads": 1, "mlp_width": 48, "vocabulary": 64}
FIELDS = {
    "model", "method", "kv_cache", "block_size", "batch_size", "context", "nfe", "tpf", "tps_median", "tps_spread",
    "prefill_seconds", "peak_memory_mb", "speedup_over_ar", "efficiency",
}  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    sizes = [f"sizes.tiny.{name}={value}" for name, value in SIZES.items()]
    overrides = [
        *sizes, "models=[tiny]", "block_sizes=[4,8]", "batch_sizes=[1,2]", "contexts=[5]", "tokens=16", "repetitions=2",
        "least_seconds=0.01", f"out={out}", f"mlflow=sqlite:///{out}/mlflow.db", "threads=1",
    ]  # fmt: skip
    patch = pytest.MonkeyPatch()
    patch.setattr(bench.machine, "measure_limits", lambda dtype, device: Limits(dtype="float32", bandwidth=1e10, flops=1e11))
    try:
        assert main(overrides) == 0
    finally:
        patch.undo()
    return json.loads((out / "decode.json").read_text()), out


def test_rows_have_the_fields_and_the_counts_of_the_method(record):
    rows = record[0]["rows"]
    assert len(rows) == 2 * (2 + 2 * 4)
    assert all(set(row) >= FIELDS for row in rows)
    for row in rows:
        N = 16 // row["block_size"]
        steps = {"one_step": 1, "base": row["block_size"] // 2}.get(row["method"])
        if steps is None:
            assert row["nfe"] == 15, "the first token comes out of prefill"
        else:
            assert row["nfe"] == N * steps + (N - 1 if row["kv_cache"] == "vanilla" else 0)
            assert row["tpf_published"] == pytest.approx(row["block_size"] / steps)
        assert row["tpf"] == pytest.approx(16 / row["nfe"])
        ar = next(r for r in rows if r["method"] == "ar" and r["batch_size"] == row["batch_size"])
        assert row["speedup_over_ar"] == pytest.approx(row["tps_median"] / ar["tps_median"])
        assert row["efficiency"] == pytest.approx(row["speedup_over_ar"] * ar["tpf"] / row["tpf"])
        assert row["peak_memory_mb"] is None or row["peak_memory_mb"] > 0
        assert row["repetitions"] == (3 if row["method"] == "ar_generate" else 2)
        assert row["dtype"] == "float32"
        assert row["prefill_spread"] >= 0


def test_short_decodes_are_repeated_until_a_repetition_is_long_enough():
    def decode() -> DecodeResult:
        return replace(RESULT, decode_seconds=0.003, prefill_seconds=0.001)

    timing = Timing(method="ar", run=decode, repetitions=1)
    timing.warm_up(torch.device("cpu"), least_seconds=0.01)
    assert timing.decodes == 3
    timing.warm_up(torch.device("cpu"), least_seconds=0.001)
    assert timing.decodes == 1
    timing.repeat()
    assert timing.seconds == [pytest.approx(0.003)]
    assert timing.prefill_seconds == [pytest.approx(0.001)]


def test_table_picture_and_mlflow_run_are_written(record):
    made, out = record
    assert (out / "decode.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "decode.md").read_text()
    assert text.count("\n| tiny |") == len(made["rows"])
    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("echo_pl-bench")
    (run,) = client.search_runs([experiment.experiment_id])
    row = next(r for r in made["rows"] if r["method"] == "one_step" and r["kv_cache"] == "fused")
    name = f"tiny/one_step-fused-L{row['block_size']}-batch{row['batch_size']}-context5/tps_median"
    assert run.data.metrics[name] == pytest.approx(row["tps_median"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("block_size=[4]", "block_size"),
        ("tokens=many", "tokens"),
        ("models=[huge]", r"models must be among \['small', 'tiny'\], got \['huge'\]"),
        ("device=tpu", "device must be cpu"),
        ("contexts=[]", "contexts must be positive"),
        ("block_sizes=[3]", "must be even"),
        ("batch_sizes=[0]", "batch_sizes must be positive"),
        ("repetitions=0", "repetitions must be at least 1"),
        ("attention=dense", "attention must be one of"),
        ("compile=true", r"sizes.small.pack_weights=true is for eager decoding on a CPU, got compile=true and device=cpu: give"),
    ],
)
def test_a_wrong_key_or_value_is_one_message(override, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(DecodeBenchmark, "decode", [override])


def test_the_command_says_errors_in_one_line(capsys):
    assert main(["tokens=10", "models=[tiny]"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[:1] == ["echo-pl: tokens must be a multiple of every block size, got 10 and block size 4"]


def test_no_report_ends_and_models_are_as_large_as_configured():
    model = BenchModel(**SIZES, dtype="bfloat16")
    assert model.special.eos == NEVER_ENDS
    vlm = model.build(torch.device("cpu"), "split")
    assert vlm.dtype == torch.bfloat16
    layers = vlm.network.model.language_model.layers
    matrices = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    assert matrices == model.shape.layer_weights
    batch = text_prompts(3, 7, model.vocabulary, torch.device("cpu"))
    assert not bool(torch.isin(batch.context_ids_BP, torch.tensor(model.special.never_sampled)).any())


SHAPE = ModelShape(width=10, layers=2, heads=2, key_heads=1, head_size=5, mlp_width=20, vocabulary=100, bytes_per_weight=2)
MATRICES = 10 * 20 + 10 * 10 + 2 * 10 * 20 + 20 * 10  # 900 weights a layer


def test_a_forward_that_only_reads_takes_its_bytes_over_the_bandwidth():
    limits = Limits(dtype="bfloat16", bandwidth=1.0, flops=1e30)
    forward = Forward(samples=3, queries=4, head_rows=4, cached=7)
    keys_and_values = 3 * 7 * 2 * 5  # samples, slots, both, one head of five
    assert least_seconds(SHAPE, forward, limits) == pytest.approx(2 * (2 * MATRICES + 2 * keys_and_values + 10 * 100))


def test_a_forward_that_only_computes_takes_its_operations_over_the_rate():
    limits = Limits(dtype="bfloat16", bandwidth=1e30, flops=1.0)
    forward = Forward(samples=3, queries=4, head_rows=2, cached=7)
    full = 2 * 12 * MATRICES + 4 * 12 * 7 * 10
    last = 2 * 12 * 200 + 2 * 6 * (MATRICES - 200) + 4 * 6 * 7 * 10  # keys of all, the rest of the two that are asked for
    assert least_seconds(SHAPE, forward, limits) == pytest.approx(full + last + 2 * 6 * 10 * 100)


def test_a_calculation_is_its_parts():
    limits = Limits(dtype="bfloat16", bandwidth=1e3, flops=1e4)
    (row,) = calculation(SHAPE, limits, block_sizes=(8,), samples=2, context=50, tokens=64)
    ar = least_autoregressive(SHAPE, limits, samples=2, context=50, tokens=64)
    one_step = least_one_step(SHAPE, limits, block_size=8, samples=2, context=50, tokens=64)
    assert row["ar_tps"] == pytest.approx(128 / ar)
    assert row["one_step_tps"] == pytest.approx(128 / one_step)
    assert row["speedup_over_ar"] == pytest.approx(ar / one_step)
    assert row["efficiency"] == pytest.approx(ar / one_step / (63 / 8))


def test_where_reading_is_all_the_fused_step_is_as_fast_as_its_theory():
    """Eight tokens for one read of the weights: the tpf ratio, when the cache weighs nothing."""
    limits = Limits(dtype="bfloat16", bandwidth=1.0, flops=1e30)
    shape = ModelShape(**{**SHAPE.__dict__, "key_heads": 0})
    ar = least_autoregressive(shape, limits, samples=1, context=50, tokens=64)
    one_step = least_one_step(shape, limits, block_size=8, samples=1, context=50, tokens=64)
    assert ar / one_step == pytest.approx(63 / 8)
