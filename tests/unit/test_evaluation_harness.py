from __future__ import annotations

from dataclasses import replace

import pytest
from evaluation_fakes import REPORTS, FakeJudge, FakeSampler, batches, detokenize

from echo_pl.evaluation.harness import Method, evaluate, evaluate_methods
from echo_pl.evaluation.rows import ROW_KEYS, Setting

AR = Setting(method="ar")
FUSED = Setting(method="base", block_size=8, kv_cache="fused")


def keys(seen: list[tuple[str, ...]]) -> list[str]:
    return [key for batch in seen for key in batch]


def test_scores_texts_and_warm_up() -> None:
    sampler = FakeSampler()
    outcome = evaluate(sampler, batches(5, 2), detokenize, FakeJudge(), warmup=2, progress=False)
    assert outcome.keys == tuple(f"study-{index}" for index in range(5))
    assert outcome.reports[0] == REPORTS[0]
    assert outcome.scores["studies"] == 5
    assert outcome.scores["rouge_l"] == 1.0
    assert outcome.signatures["finding_f1"].startswith("finding_f1|average:micro")
    # The warm-up decodes the first batch, and neither its reports nor its seconds count.
    assert sampler.seen[:3] == [("study-0", "study-1")] * 3
    assert len(outcome.results) == 3
    assert outcome.scores["seconds_per_report"] == pytest.approx(3 * (0.1 + 0.5) / 5)


def test_methods_take_turns_over_the_same_studies() -> None:
    order: list[str] = []

    class Noting(FakeSampler):
        def __init__(self, name: str, **settings: int) -> None:
            super().__init__(**settings)
            self.name = name

        def generate(self, batch, recorder=None):  # type: ignore[no-untyped-def]
            order.extend([self.name] * len(batch))
            return super().generate(batch, recorder)

    one, four = Noting("one", block_size=1), Noting("four")
    methods = [Method(setting=AR, sampler=one), Method(setting=replace(FUSED, batch_size=4), sampler=four)]
    prompts = {1: batches(8, 1), 4: batches(8, 4)}
    evaluated = evaluate_methods(methods, prompts, detokenize, FakeJudge(), warmup=0, studies_per_round=4, progress=False)
    assert order == ["one"] * 4 + ["four"] * 4 + ["one"] * 4 + ["four"] * 4
    assert keys(one.seen) == keys(four.seen)
    assert evaluated[0].outcome.texts == evaluated[1].outcome.texts


def test_rows_have_the_keys_of_the_summary() -> None:
    methods = [Method(setting=AR, sampler=FakeSampler(1))]
    row = evaluate_methods(methods, {1: batches(2, 1)}, detokenize, None, progress=False)[0].row
    assert tuple(row) == ROW_KEYS
    assert row["finding_f1"] is None
    assert row["studies"] == 2
    assert isinstance(row["studies"], int)


def test_different_studies_are_an_error() -> None:
    methods = [
        Method(setting=AR, sampler=FakeSampler(1)),
        Method(setting=replace(AR, batch_size=2), sampler=FakeSampler(1)),
    ]
    with pytest.raises(ValueError, match="hold different studies"):
        evaluate_methods(methods, {1: batches(4, 1), 2: batches(6, 2)}, detokenize, None)
    with pytest.raises(ValueError, match="no batches of size 2"):
        evaluate_methods(methods, {1: batches(4, 1)}, detokenize, None)


def test_a_batch_without_references_is_an_error() -> None:
    with pytest.raises(ValueError, match="'study-0': 2 studies but 0 references"):
        evaluate(FakeSampler(), [replace(batches(2, 2)[0], references=())], detokenize, None)
    with pytest.raises(ValueError, match="got no batches"):
        evaluate(FakeSampler(), [], detokenize, None)
