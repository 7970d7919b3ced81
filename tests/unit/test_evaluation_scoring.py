"""Scored runs: scores of reports and corpora have one definition; the worst reports; the page."""

from __future__ import annotations

import math
import re

import pytest
from evaluation_fakes import FakeJudge
from metric_reports import label, reports
from PIL import Image

from echo_pl.evaluation.cases import EMPTY, Case, Prediction
from echo_pl.evaluation.metric_choice import FindingsReader, build_metrics, finding_differences, judge_reader
from echo_pl.evaluation.options import Options
from echo_pl.evaluation.score_report import OTHERS, ScoreReport, marked, shown_cases
from echo_pl.evaluation.scoring import Resampling, ScoredRun, compare_runs, decoding_rows, metric_rows, summarize, worst
from echo_pl.metrics.words import split_words
from echo_pl.structs import ReportText

READER = FindingsReader(name="test", label=label)
FEW = Resampling(resamples=50, rounds=200)


def text(findings: str) -> ReportText:
    return ReportText(findings=findings, impression="")


def cases(seed: int, size: int = 12) -> list[Case]:
    pairs = zip(reports(seed, size), reports(2, size), strict=True)
    found = [Case(key=f"s{i}", prediction=Prediction(report=text(p)), reference=text(r)) for i, (p, r) in enumerate(pairs)]
    lost = Prediction(report=EMPTY, parsed=False, stopped=False)
    return [*found[:-1], Case(key="lost", prediction=lost, reference=found[-1].reference)]


def score(run: list[Case], reader: FindingsReader = READER, **options: object) -> ScoredRun:
    metrics, absent = build_metrics(Options(**options), reader, run)
    known, missing = decoding_rows(run)
    return summarize(run, [*metric_rows(run, metrics, "both", progress=False), *known], [*absent, *missing], FEW, progress=False)


def test_every_score_is_computed_or_listed_as_absent():
    scored = score(cases(1))
    names = {figure.name for figure in scored.scores}
    assert {"rouge_1_google", "rouge_l_paper", "meteor", "cider", "cider_d", "bleu_4", "findings_f1_macro", "empty"} <= names
    assert scored.score("unparsable").interval.value == pytest.approx(1 / 12)
    assert scored.score("stopped").interval.value == 0.0
    reasons = {one.name: one.reason for one in scored.absent}
    assert {"perplexity", "embedding similarity", "non_word_rate", "region_completeness", "eos_confidence"} <= reasons.keys()
    assert "--language-model" in reasons["perplexity"]
    assert "--wordnet" in reasons["WordNet"]
    assert all("12 in all" in figure.signature for figure in scored.scores)


def test_means_over_reports_are_means_of_what_reports_have_by_themselves():
    scored = score(cases(1))
    of_reports = scored.of_reports
    for name in ("rouge_l_google", "rouge_2_paper", "meteor", "cider_d", "repetition_rate"):
        assert scored.score(name).interval.value == pytest.approx(sum(of_reports[name]) / 12)
    for figure in scored.scores:
        assert figure.interval.low <= figure.interval.value + 1e-9
        assert figure.interval.high >= figure.interval.value - 1e-9


def test_a_reader_that_finds_nothing_in_the_references_is_absent_and_an_embedding_may_not_stand_alone(tmp_path):
    silent = FindingsReader(name="silent", label=lambda text: {})
    scored = score(cases(1), silent, embedding_model=tmp_path)
    assert not [figure for figure in scored.scores if figure.name.startswith(("findings", "cosine"))]
    reasons = {one.name: one.reason for one in scored.absent}
    assert "silent reads nothing in any reference" in reasons["findings"]
    assert "never reported alone" in reasons["embedding similarity"]


def test_findings_of_normal_studies_are_scored_as_what_is_hallucinated_there_counts():
    normal = text("the lungs are clear. no pleural effusion.")
    written = [text("the lungs are clear."), text("the heart is enlarged."), EMPTY]
    run = [Case(key=f"s{i}", prediction=Prediction(report=one), reference=normal) for i, one in enumerate(written)]
    judge = judge_reader(FakeJudge(), "fake")
    for reader in (READER, judge):
        scored = score(run, reader)
        assert scored.score("hallucinated_findings").interval.value == pytest.approx(1 / 3)
        assert scored.score("findings_f1_micro").interval.value == 0.0
        assert scored.of_reports["findings_f1_micro"] == [1.0, 0.0, 0.0]
        assert set(worst(scored, "findings_f1_micro", 2)) == {1, 2}, "the empty one is among the worst"
    strange = [Case(key=one.key, prediction=one.prediction, reference=text("lorem ipsum.")) for one in run]
    assert any("fake reads nothing in any reference" in one.reason for one in score(strange, judge).absent)


def test_signatures_do_not_depend_on_what_was_predicted():
    reference = text("the heart is enlarged.")
    signatures = []
    for written in (reference, text("the heart is enlarged. there is a left pleural effusion."), EMPTY):
        run = [Case(key="s", prediction=Prediction(report=written), reference=reference)]
        signatures.append({figure.name: figure.signature for figure in score(run, judge_reader(FakeJudge(), "fake")).scores})
    assert signatures[0] == signatures[1] == signatures[2]


def test_a_run_is_compared_with_itself_and_with_another():
    one, other = score(cases(1)), score(cases(3))
    same = compare_runs(one, one, FEW, progress=False)
    assert {compared.result.p for compared in same} == {1.0}
    assert {compared.verdict for compared in same} == {"no difference shown"}
    found = {compared.name: compared for compared in compare_runs(one, other, FEW, progress=False)}
    gap = one.score("bleu_2").interval.value - other.score("bleu_2").interval.value
    assert found["bleu_2"].result.difference == pytest.approx(gap)
    assert found["bleu_2"].p_holm >= found["bleu_2"].result.p
    with pytest.raises(ValueError, match="same studies"):
        compare_runs(one, score(cases(3)[::-1]), FEW, progress=False)


def test_verdicts_know_which_direction_is_better():
    good = [Case(key=one.key, prediction=Prediction(report=one.reference), reference=one.reference) for one in cases(1, 14)]
    bad = [Case(key=one.key, prediction=Prediction(report=text("the the heart heart")), reference=one.reference) for one in good]
    many = Resampling(resamples=20, rounds=8000)
    verdicts = {compared.name: compared.verdict for compared in compare_runs(score(good), score(bad), many, progress=False)}
    assert verdicts["rouge_l_google"] == verdicts["duplicate_word_rate"] == "better"
    assert verdicts["length_ratio"] == "different"
    assert verdicts["empty"] == "no difference shown"


def test_the_worst_reports_come_first():
    scored = score(cases(1))
    values = scored.of_reports["rouge_l_google"]
    places = worst(scored, "rouge_l_google", 4)
    assert 11 in places, "the report that is lost"
    assert [values[place] for place in places] == sorted(values)[:4]
    assert worst(scored, "repetition_rate", 1)[0] == max(range(12), key=scored.of_reports["repetition_rate"].__getitem__)
    with pytest.raises(ValueError, match="neither a high nor a low"):
        worst(scored, "length_ratio", 1)
    with pytest.raises(ValueError, match="no score 'rouge'"):
        worst(scored, "rouge", 1)


def test_the_page_shows_figures_what_is_absent_and_the_worst_reports():
    run = [
        *cases(1)[:3],
        Case(key="a|b", prediction=Prediction(report=text("<b> *The* heart is enlarged.")), reference=text("No.")),
    ]
    scored = score(run)
    compared = compare_runs(scored, score([*cases(3)[:3], run[3]]), FEW, progress=False)
    shown = shown_cases(scored, "findings_f1_micro", 4, "both", lambda p, r: finding_differences(label, p, r))
    report = ScoreReport(
        title="Evaluation of x", scored=scored, level=0.9, compared=compared, other="y", notes=["a note"],
        worst_by="findings_f1_micro", cases=shown, command="python -m x",
    )  # fmt: skip
    page, markdown = report.page(), report.markdown()
    for text_ in (page, markdown):
        assert "hallucinated: cardiomegaly" in text_
        assert "intervals of 90%" in text_
        assert "two-sided, exact" in text_
        assert "a note" in text_
        assert "<b>" not in text_
    assert '&lt;<span class="extra">b</span>&gt; *<span class="extra">The</span>*' in page
    assert page.count('class="whisker') == len(compared)
    assert page.count('class="tile"') == 5
    assert not re.findall(r"<script|(?:src|href)=", page)
    assert "&lt;b&gt; \\*The\\*" in markdown
    assert "| bleu_4 |" in markdown
    assert "- perplexity: no language model" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in rows} == {8}


def test_every_score_has_one_heading():
    scored = score(cases(1))
    groups = ScoreReport(title="x", scored=scored, level=0.9).groups
    assert sorted(name for names in groups.values() for name in names) == sorted(figure.name for figure in scored.scores)
    assert OTHERS not in groups


def test_worst_reports_stand_beside_their_image_and_what_the_other_run_wrote():
    scored, others = score(cases(1)), cases(3)
    asked = []

    def images(keys):
        asked.extend(keys)
        return {keys[0]: Image.new("I;16", (900, 600))}

    shown = shown_cases(scored, "rouge_l_google", 3, "both", None, others=others, images=images)
    assert asked == [case.key for case in shown]
    assert [case.image is not None for case in shown] == [True, False, False]
    wrote = {case.key: case.prediction.report.findings for case in others}
    assert [case.other for case in shown] == [" ".join(wrote[case.key].split()) for case in shown]
    report = ScoreReport(title="x", scored=scored, level=0.9, worst_by="rouge_l_google", cases=shown)
    page = report.page()
    assert page.count('src="data:image/png') == 1
    assert page.count(">other run<") == 3
    assert "(empty)" in page, "the report that is lost"
    assert "**Other run**" in report.markdown()


@pytest.mark.parametrize("seed", range(8))
def test_marks_change_no_text_and_what_is_common_is_the_same(seed):
    pairs = [*zip(reports(seed, 6), reports(seed + 1, 6), strict=True), ("", "a b."), ("心影正常。 A", "心影 增大"), (" .", "_")]
    for texts in pairs:
        both = marked(*texts)
        assert tuple("".join(words for words, _ in one) for one in both) == texts
        common = [[word for words, same in one if same for word in split_words(words)] for one in both]
        assert common[0] == common[1]
        assert bool(common[0]) == bool(set(split_words(texts[0])) & set(split_words(texts[1])))


def test_resampling_is_checked():
    for wrong in ({"resamples": 0}, {"rounds": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="must be"):
            Resampling(**wrong)
    assert not math.isnan(score(cases(1)).score("bleu_1").interval.low)
