"""Counts by study: their sums give the scores that the report suite gives, and files give the counts back."""

from __future__ import annotations

import pytest
import torch
from evaluation_fakes import REPORTS, FakeJudge, FakeSampler, batches, detokenize, tokenize

from echo_pl.evaluation.harness import evaluate
from echo_pl.sweeps.contrasts import StudyCounts, study_counts


class MisSampler(FakeSampler):
    """Writes every fourth report for another study, and stutters."""

    def __init__(self) -> None:
        super().__init__(stutter=True)
        self.written = 0

    def _response(self, report):
        self.written += 1
        if self.written == 6:
            return tokenize("the heart")  # no heading: an empty report
        return super()._response(REPORTS[1] if self.written % 4 == 0 else report)


@pytest.mark.parametrize("judge", [FakeJudge(), None])
def test_sums_of_the_counts_are_the_scores(judge, tmp_path):
    prompts = batches(11, 4)
    outcome = evaluate(MisSampler(), prompts, detokenize, judge, warmup=0, progress=False)
    counts = study_counts(outcome, [one for batch in prompts for one in batch.references], judge)
    assert counts.keys == tuple(f"study-{index}" for index in range(11))
    found = {name: float(value) for name, value in counts.figures(counts.rows_NK.sum(0)).items()}
    assert found == pytest.approx({name: outcome.scores[name] for name in found}, abs=1e-6)
    assert ("finding_f1" in found) == ("valid_reports" in found) == (judge is not None)
    assert 0.0 < found["rouge_l"] < 1.0
    assert found["unparsable"] == found["empty"] == 1 / 11
    counts.save(tmp_path / "studies.json")
    again = StudyCounts.load(tmp_path / "studies.json")
    assert (again.keys, again.names) == (counts.keys, counts.names)
    assert torch.equal(again.rows_NK, counts.rows_NK)
    assert (again.references, again.signatures) == (counts.references, outcome.signatures)
    assert "references:1 each, 11 in all" in again.signatures["rouge_l"]


def test_other_references_have_another_fingerprint():
    outcome = evaluate(FakeSampler(), batches(2, 2), detokenize, None, progress=False)
    one, other = (study_counts(outcome, [REPORTS[0], report], None).references for report in REPORTS[:2])
    assert one != other


def test_references_of_other_studies_are_an_error():
    outcome = evaluate(FakeSampler(), batches(3, 2), detokenize, None, progress=False)
    with pytest.raises(ValueError, match="got 3 predictions for 2 references"):
        study_counts(outcome, REPORTS[:2], None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"keys": ["a"]}', '{"keys": ["a"], "counts": {"reports": [1]}}', '{"keys": ["a"], "counts": {"x": [1, 2]}}'],
)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, content):
    path = tmp_path / "studies.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"studies.json is damaged.*start the sweep again"):
        StudyCounts.load(path)
