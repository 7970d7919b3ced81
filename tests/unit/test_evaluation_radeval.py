"""The adapter to radeval: against a stand-in package with its names, in the process of its own; and how it says what is absent."""

from __future__ import annotations

import textwrap

import pytest

from echo_pl.evaluation.radeval_backend import BACKENDS, FIGURES, clinical_scores
from echo_pl.evaluation.scoring import Absent

REFERENCES = ["The heart is enlarged.", "No effusion.", "Clear."]
PREDICTIONS = ["The heart is enlarged.", "", "Effusion."]
STAND_IN = {
    "radeval/__init__.py": "",
    "radeval/metrics/__init__.py": "",
    "radeval/metrics/RaTEScore/__init__.py": "",
    "radeval/metrics/RaTEScore/scorer.py": """
        class RaTEScore:
            def __init__(self, use_gpu):
                print("loading a model")
                assert use_gpu is False
                self.affinity_matrix = {("DISEASE", "DISEASE"): 0.5, ("NON-DISEASE", "DISEASE"): 0.25}
            def compute_score(self, candidate_list, reference_list):
                assert "" not in candidate_list
                return [sum(self.affinity_matrix.values()) for _ in reference_list], None, None
        """,
    "radeval/metrics/radgraph.py": """
        import os
        import RadEval.metrics.RaTEScore  # as the vendored code of 2.2.1 imports itself
        class F1RadGraph:
            def __init__(self, reward_level, model_type, cuda):
                assert (reward_level, model_type, cuda) == ("all", "radgraph-xl", -1)
                assert os.environ["HF_HUB_OFFLINE"] == "1"
                assert os.environ["HF_HOME"].startswith(os.environ["XDG_CACHE_HOME"])
            def __call__(self, refs, hyps):
                return None, ([1.0] * len(refs), [0.5] * len(refs), [0.25] * len(refs)), None, None
        """,
    "radeval/metrics/f1chexbert/__init__.py": "",
    "radeval/metrics/f1chexbert/f1chexbert.py": """
        class F1CheXbert:
            def __init__(self, device):
                raise OSError("no chexbert.pth in the cache")
        """,
    "radeval-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: radeval\nVersion: 9.9\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, content in STAND_IN.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(content), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "models").mkdir()
    return tmp_path


def test_scores_come_back_in_order_and_an_empty_prediction_scores_zero(package):
    found, absent = clinical_scores("radgraph", PREDICTIONS, REFERENCES, package / "models")
    assert [one.metric.names[0] for one in found] == list(FIGURES["radgraph"])
    assert [one.rows_NK[:, 0].tolist() for one in found] == [[1.0, 0.0, 1.0], [0.5, 0.0, 0.5], [0.25, 0.0, 0.25]]
    assert [one.rows_NK[:, 1].sum().item() for one in found] == [3.0] * 3
    assert "radeval 9.9" in found[0].metric.variant
    assert absent == []


def test_positive_only_gives_negated_entities_no_weight(package):
    (every,), _ = clinical_scores("ratescore", PREDICTIONS, REFERENCES, package / "models")
    (positive,), _ = clinical_scores("ratescore_positive", PREDICTIONS, REFERENCES, package / "models")
    assert every.rows_NK[0].tolist() == [0.75, 1.0]
    assert positive.rows_NK[0].tolist() == [0.5, 1.0]
    assert every.metric.variant != positive.metric.variant


def test_a_missing_model_is_absent_with_its_reason(package):
    found = clinical_scores("chexbert", PREDICTIONS, REFERENCES, package / "models")
    reason = "a model is missing in --clinical-models: no chexbert.pth in the cache"
    assert found == ([], [Absent(name=name, reason=reason) for name in ("chexbert_accuracy_14", "semb_score")])


def test_another_failure_says_its_kind_and_no_report(package):
    file = package / "site" / "radeval/metrics/f1chexbert/f1chexbert.py"
    file.write_text("class F1CheXbert:\n    def __init__(self, device):\n        raise RuntimeError('The heart is enlarged.')\n")
    _, absent = clinical_scores("chexbert", PREDICTIONS, REFERENCES, package / "models")
    assert [one.reason for one in absent] == ["radeval failed with RuntimeError"] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_models_every_figure_is_absent(backend, tmp_path):
    _, absent = clinical_scores(backend, PREDICTIONS, REFERENCES, None)
    assert [one.name for one in absent] == list(FIGURES[backend])
    assert all("--clinical-models" in one.reason for one in absent)
    _, gone = clinical_scores(backend, PREDICTIONS, REFERENCES, tmp_path / "gone")
    assert all(str(tmp_path / "gone") in one.reason for one in gone)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "radeval.py").write_text("raise ModuleNotFoundError('no', name='medspacy')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, (one,) = clinical_scores("ratescore", PREDICTIONS, REFERENCES, tmp_path)
    assert one.reason == "radeval needs a package that is not installed: medspacy (pip install radeval)"
