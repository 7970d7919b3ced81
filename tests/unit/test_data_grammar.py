"""The grammar and its judge: what is written is read back exactly, what is not written is not accepted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from echo_pl.data.store.study import VERSIONS, Study
from echo_pl.data.synthetic.chest_findings import CHEST_FINDINGS
from echo_pl.data.synthetic.grammar import PEAKED, Finding, Observation, ReportGrammar
from echo_pl.data.synthetic.grammar_judge import GrammarJudge
from echo_pl.data.synthetic.synthetic import SyntheticCorpus, synthetic_judge
from echo_pl.reports.regions import REGION_NAMES, REGIONS
from echo_pl.reports.report import ReportJudge
from echo_pl.reports.sentences import split_at_marks
from echo_pl.structs import ReportText


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return list(SyntheticCorpus(seed=11, wording="even").studies("train", 500))


def written(*observations: Observation) -> ReportText:
    return ReportGrammar(CHEST_FINDINGS).normalized(observations, np.random.default_rng(0))


EFFUSION = Observation(name="effusion_left", size="small")


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip(studies, version):
    judge = synthetic_judge(version)
    assert isinstance(judge, ReportJudge)
    for study in studies:
        parsed = judge.parse(study.report(version))
        assert parsed.findings == frozenset(study.labels)
        assert all(valid for _, valid in parsed.sentences)
        assert parsed.well_formed, study.report(version)


def test_detailed_findings_carry_sizes(studies):
    judge = synthetic_judge(detailed=True)
    for study in studies[:100]:
        expected = {f"{label}:{study.meta[label]}" if label in study.meta else label for label in study.labels}
        assert judge.parse(study.normalized).findings == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "there is a small left effusion is seen.",
        "there is a small small left pleural effusion.",
        "a pac is inemaker.",
        "There is a small left pleural effusion.",
        "there is a small left pleural effusion",
        "there is a huge left pleural effusion.",
        "normal chest.",
    ],
)
def test_mixed_wordings_are_invalid(sentence):
    report = written(EFFUSION)
    sentences = split_at_marks(report.findings, ".", keep=True)
    sentences[5] = sentence
    parsed = synthetic_judge().parse(replace(report, findings=" ".join(sentences)))
    assert [text.startswith(sentence) for text, valid in parsed.sentences if not valid] == [True]
    assert parsed.findings == set()
    assert not parsed.well_formed


def test_well_formed_needs_every_region_in_order():
    report = written(EFFUSION)
    judge = synthetic_judge()
    sentences = split_at_marks(report.findings, ".", keep=True)
    assert len(sentences) == len(REGIONS)
    assert judge.parse(report).well_formed
    for broken in (
        sentences[1:],
        [*sentences, sentences[-1]],
        [sentences[1], sentences[0], *sentences[2:]],
        [*sentences[:6], REGIONS[5].normal[0], *sentences[6:]],
        [*sentences[:6], "there is a large left pleural effusion.", *sentences[6:]],
    ):
        parsed = judge.parse(replace(report, findings=" ".join(broken)))
        assert all(valid for _, valid in parsed.sentences)
        assert not parsed.well_formed


@pytest.mark.parametrize(
    ("impression", "valid", "well_formed"),
    [
        ("small left effusion.", True, True),
        ("left pleural effusion.", True, True),
        ("large left effusion.", True, False),
        ("normal chest.", True, False),
        ("small left effusion and pacemaker in place.", True, False),
        ("small left effusion, pacemaker in place.", False, False),
        ("findings of .", False, False),
        ("", None, False),
    ],
)
def test_impression_must_agree(impression, valid, well_formed):
    parsed = synthetic_judge().parse(replace(written(EFFUSION), impression=impression))
    assert parsed.well_formed is well_formed
    assert parsed.findings == {"effusion_left"}
    if valid is not None:
        assert parsed.sentences[-1] == (impression, valid)


@pytest.mark.parametrize("text", ["", ".", "...", " ", "\n\n", "{size}", "a" * 5000, "é 所见 \x00", ", and , and ."])
@pytest.mark.parametrize("version", VERSIONS)
def test_parse_never_raises(text, version):
    parsed = synthetic_judge(version).parse(ReportText(findings=text, impression=text))
    assert not parsed.well_formed
    assert not parsed.findings


def test_wording_shares():
    def shares(wording: str) -> list[float]:
        grammar = ReportGrammar(CHEST_FINDINGS, wording=wording)
        rng = np.random.default_rng(0)
        first = [split_at_marks(grammar.normalized([], rng).findings, ".", keep=True)[0] for _ in range(4000)]
        counted = Counter(first)
        return [counted[sentence] / len(first) for sentence in REGIONS[0].normal]

    assert shares("peaked") == pytest.approx(PEAKED, abs=0.03)
    assert shares("even") == pytest.approx([0.2] * 5, abs=0.03)


def test_wordings_differ_in_length_and_order():
    for finding in CHEST_FINDINGS:
        assert len(set(finding.wordings)) == len(PEAKED)
        assert len({len(wording.split()) for wording in finding.wordings}) >= 2
        assert len({wording.split()[0] for wording in finding.wordings}) >= 3


def test_every_region_has_a_finding():
    assert {finding.region for finding in CHEST_FINDINGS} == set(REGION_NAMES)


def test_digest_tells_grammars_apart():
    digests = {
        ReportGrammar(CHEST_FINDINGS).digest,
        ReportGrammar(CHEST_FINDINGS, wording="even").digest,
        ReportGrammar(CHEST_FINDINGS[1:]).digest,
    }
    assert len(digests) == 3


def test_bad_tables_are_rejected():
    good = {"name": "x", "region": "lungs", "wordings": ("x.",), "summaries": ("x",), "brief": ("x.",)}
    with pytest.raises(ValueError, match="region of finding x must be one of"):
        Finding(**{**good, "region": "knee"})
    with pytest.raises(ValueError, match="list separator"):
        Finding(**{**good, "summaries": ("a and b",)})
    with pytest.raises(ValueError, match="one full stop"):
        Finding(**{**good, "wordings": ("x. y.",)})
    with pytest.raises(ValueError, match="means two things"):
        GrammarJudge(ReportGrammar([Finding(**good), Finding(**{**good, "name": "y"})]))
    with pytest.raises(ValueError, match="'peaked' or 'even', got 'flat'"):
        ReportGrammar(CHEST_FINDINGS, wording="flat")
    with pytest.raises(ValueError, match="at most 1 findings, got 2"):
        ReportGrammar(CHEST_FINDINGS, max_findings=1).normalized(
            [EFFUSION, Observation(name="pacemaker")], np.random.default_rng(0)
        )
