"""Values that a stage logs of reports decoded in validation, and the devices of their sums."""

from __future__ import annotations

import torch
from evaluation_fakes import REPORTS, SPECIAL, FakeJudge, FakeSampler, batches, detokenize
from torchmetrics import Metric

from echo_pl.reports.response import parse_response
from echo_pl.stages.validation import GenerationCheck, TextTools

TEXT = TextTools(
    special=SPECIAL,
    vocab_size=64,
    labels=(),
    to_report=lambda tokens: parse_response(detokenize(tokens)),
    judge=FakeJudge(),
    fingerprint="f00d",
)


def test_quality_is_logged_under_val_and_cost_under_speed():
    check = GenerationCheck(TEXT, batches=2)
    check.start(torch.device("cpu"))
    sampler = FakeSampler(block_size=4)
    for index, batch in enumerate(batches(6, 2)):
        check.update(sampler, batch, index)
    assert len(sampler.seen) == 2
    scores = check.compute()
    assert scores["val/finding_f1"] == scores["val/rouge_l"] == scores["val/stopped"] == 1.0
    assert scores["val/looped"] == 0.0
    assert scores["speed/nfe"] > 1
    assert 3 < scores["speed/tpf"] < 4
    assert scores["speed/tps"] > 0
    quality = {"finding_f1", "valid_sentences", "rouge_l", "duplicate_word_rate", "stopped", "looped"}
    assert scores.keys() == {f"val/{name}" for name in quality} | {
        "speed/nfe",
        "speed/tpf",
        "speed/forwards_per_block",
        "speed/tps",
    }


def test_autoregressive_decodes_have_no_forwards_per_block():
    check = GenerationCheck(TEXT, batches=1, in_blocks=False)
    check.start(torch.device("cpu"))
    check.update(FakeSampler(block_size=1), batches(2, 2)[0], 0)
    scores = check.compute()
    assert "speed/nfe" in scores
    assert "speed/forwards_per_block" not in scores


def test_the_sums_are_kept_on_the_module_s_device():
    """Ranks add them up with the backend of that device."""
    check = GenerationCheck(TEXT, batches=1)
    check.start(torch.device("meta"))
    (batch,) = batches(len(REPORTS), len(REPORTS))
    check.update(FakeSampler(), batch, 0)
    metrics = [module for module in check._suite.modules() if isinstance(module, Metric)]
    states = [getattr(metric, name) for metric in metrics for name in metric._defaults]
    assert sum(state.numel() for state in states) > 10
    assert {state.device.type for state in states} == {"meta"}


def test_without_batches_nothing_is_decoded_and_nothing_logged():
    check = GenerationCheck(TEXT, batches=0)
    check.start(torch.device("cpu"))
    sampler = FakeSampler()
    check.update(sampler, batches(1, 1)[0], 0)
    assert sampler.seen == []
    assert check.compute() == {}
