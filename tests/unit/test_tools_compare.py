"""``echo_pl.sweeps.compare`` on runs in MLflow that are made by hand."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import command
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from echo_pl.metrics.suite import JUDGED_COUNTS
from echo_pl.sweeps.contrasts import COUNTS, StudyCounts, contrasts
from echo_pl.sweeps.pareto import Measured

pytestmark = pytest.mark.slow

main = command("compare")


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    place = f"sqlite:///{tmp_path_factory.mktemp('compare') / 'mlflow.db'}"
    client = MlflowClient(place)
    experiment = client.create_experiment("echo_pl")
    parents = [client.create_run(experiment, tags={"echo_pl.sweep": name}).info.run_id for name in ("lab", "empty")]
    client.create_run(experiment, tags={"mlflow.parentRunId": parents[0], "mlflow.runName": "a training run that is no cell"})

    def cell(objective: str, size: int, seed: int, scores: dict[str, float], status: str = "FINISHED", **tags: str) -> None:
        name = f"{objective}-L{size}-s{seed}"
        own = {"mlflow.parentRunId": parents[0], "mlflow.runName": name, "echo_pl.cell": name}
        run = client.create_run(experiment, tags=own | {f"echo_pl.{key}": value for key, value in tags.items()}).info.run_id
        params = {"objective": objective, "variant": "-", "block_size": str(size), "seed": str(seed)}
        metrics = [Metric(key, value, 0, 0) for key, value in scores.items()]
        client.log_batch(run, metrics=metrics, params=[Param(key, value) for key, value in params.items()])
        client.update_run(run, status)

    for seed, f1 in ((0, 0.80), (1, 0.84)):
        cell("dcd", 8, seed, {"finding_f1": f1, "rouge_l": 0.6, "tps": 400.0, "nfe": 9.0})
    cell("ar", 1, 0, {"finding_f1": 0.9, "rouge_l": 0.7, "tps": 100.0, "nfe": 64.0})
    cell("ce", 8, 0, {"finding_f1": 0.7, "rouge_l": 0.5, "tps": 399.0, "nfe": 9.5})
    cell("ce", 8, 1, {}, "FAILED", error="the power is gone")
    cell("ddo", 8, 0, {}, "SCHEDULED")
    return place


KEYS = tuple(f"study{number}" for number in range(40))


def counts(right: int, rouge: float, references: str = "of the corpus") -> StudyCounts:
    """Scores of a model that detects the one finding in this many of 40 studies; ROUGE-L is the same for all."""
    hits = [float(place < right) for place in range(40)]
    rows = [[1.0, rouge, 0.0, 1.0, 0.0, 0.0, hit, 0.0, 1.0 - hit, 2.0, 2.0, 1.0] for hit in hits]
    return StudyCounts(
        keys=KEYS, names=COUNTS + JUDGED_COUNTS, rows_NK=torch.tensor(rows, dtype=torch.float64), references=references
    )


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> str:
    """A sweep whose cells say what each study counts for, and one that does not."""
    folder = tmp_path_factory.mktemp("counted")
    place = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(place)
    experiment = client.create_experiment("echo_pl", str(folder / "artifacts"))
    parent = client.create_run(experiment, tags={"echo_pl.sweep": "lab"}).info.run_id
    for objective, size, seed, right in (
        ("ar", 1, 0, 40), ("ar", 1, 1, 40), ("dcd", 8, 0, 20), ("dcd", 8, 1, 22), ("ce", 8, 0, 20), ("ce", 8, 1, 22),
        ("tilted", 8, 0, 38), ("tilted", 8, 1, 38), ("tilted", 8, 2, 38), ("tilted", 4, 0, 38), ("raw", 8, 0, 20),
    ):  # fmt: skip
        name = f"{objective}-L{size}-s{seed}"
        tags = {"mlflow.parentRunId": parent, "mlflow.runName": name, "echo_pl.cell": name, "echo_pl.base": f"ar-L1-s{seed}"}
        run = client.create_run(experiment, tags=tags).info.run_id
        params = {"objective": objective, "variant": "-", "block_size": str(size), "seed": str(seed)}
        own = counts(right, 0.5, references="raw" if objective == "raw" else "normalized")
        scores = {name: float(value) for name, value in own.figures(own.rows_NK.sum(0)).items()} | {
            "nfe": 8.0,
            "forwards_per_block": 1.0,
        }
        metrics = [Metric(key, value, 0, 0) for key, value in scores.items()]
        client.log_batch(run, metrics=metrics, params=[Param(key, value) for key, value in params.items()])
        if seed < 2:
            own.save(folder / name / "sweep_studies.json")
            client.log_artifact(run, str(folder / name / "sweep_studies.json"))
        client.update_run(run, "FINISHED")
    return place


def test_students_are_held_against_their_ar_model_and_against_the_baselines(counted, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "--mlflow", counted, "--out", str(tmp_path), "--rounds", "999") == 0, "as the command says"
    record = json.loads((tmp_path / "compare.json").read_text())
    of_blocks = {one["objective"]: "forwards_per_block" in one["means"] for one in record["groups"]}
    assert [name for name, has in of_blocks.items() if not has] == ["ar"], "token by token there are no blocks"
    lower = {(one["key"][0], one["key"][2], one["name"]): one["mean"] for one in record["drops"]}
    assert lower["tilted", 8, "finding_f1"]["value"] == pytest.approx(1 - 76 / 78), "2 hits / (2 hits + missed), seeds 0 and 1"
    assert lower["tilted", 8, "finding_f1"]["seeds"] == 2, "the AR model of seed 2 is not there"
    assert lower["dcd", 8, "finding_f1"]["value"] == pytest.approx(1 - (40 / 60 + 44 / 62) / 2)
    assert lower["dcd", 8, "rouge_l"]["value"] == 0.0
    tests = {(one["first"][0], one["second"][0], one["first"][2], one["name"]): one for one in record["contrasts"]}
    assert {place[:3] for place in tests} == {("ce", "dcd", 8), ("tilted", "dcd", 8), ("tilted", "ce", 8)}, "each pair once"
    better = tests["tilted", "ce", 8, "finding_f1"]
    assert better["seeds"] == [0, 1]
    assert better["by_seed"] == pytest.approx([76 / 78 - 40 / 60, 76 / 78 - 44 / 62])
    assert better["comparison"]["difference"] == pytest.approx(152 / 156 - 84 / 122), "of the reports of both seeds together"
    assert better["comparison"]["p"] == pytest.approx(1 / 1000)
    assert better["corrected"] == pytest.approx(12 / 1000), "Holm: the smallest of 12 tests"
    assert tests["ce", "dcd", 8, "finding_f1"]["comparison"]["p"] == 1.0
    printed = capsys.readouterr().out
    assert "tilted, L=8 against ce" in printed
    assert "tilted, L=4 was not tested against dcd: no cell of this block size is of it" in printed
    assert "raw, L=8 was not tested against ce, L=8: other studies, or other references of them" in printed
    command = ["echo-pl", "compare", "--mlflow", counted, "--out", str(tmp_path), "--rounds", "999"]
    assert shlex.join(command) in (tmp_path / "compare.md").read_text()
    assert "tilted-L8-s2 has no counts by study, so it is in no test" in printed
    assert "against each other" in (tmp_path / "compare.md").read_text()
    assert "against each other" in (tmp_path / "index.html").read_text()


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["echo-pl", "compare", *arguments])
    return main(arguments)


def test_the_table_the_front_and_what_is_missing(uri, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "--mlflow", uri, "--sweep", "lab", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "0.820 [0.566, 1.074]" in printed, "mean 0.82, standard error 0.02, t of one degree of freedom 12.706"
    assert "Pareto front of finding_f1 against nfe (fewest last): ar < dcd, L=8" in printed
    assert "ce-L8-s1 failed: the power is gone" in printed
    assert "ddo-L8-s0 has no scores yet (scheduled)" in printed
    assert "ce, L=8 lacks seed 1 of 0, 1" in printed
    assert "ar lacks seed 1 of 0, 1" in printed
    assert "ddo, L=8 lacks seed 0, 1 of 0, 1" in printed
    assert "no cell that" not in printed
    record = json.loads((tmp_path / "compare.json").read_text())
    assert [(one["objective"], one["block_size"], one["seeds"]) for one in record["groups"]] == [
        ("ar", 1, [0]), ("ce", 8, [0]), ("dcd", 8, [0, 1])
    ]  # fmt: skip
    assert record["groups"][0]["means"]["tps"] == {"value": 100.0, "low": None, "high": None, "seeds": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"compare.md", "compare.json", "index.html", "pareto.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "other"], "does not have one sweep named 'other'; there are: "),
        ([], "does not have one sweep; there are: "),
        (["--sweep", "empty"], "none of the 0 cells has scores yet"),
        (["--experiment", "x"], "there is no experiment 'x'"),
        (["--sweep", "lab", "--quality", "cider"], "no cell has the score cider"),
        (["--sweep", "it's"], 'does not have one sweep named "it\'s"; there are: '),
        (["--sweep", "lab", "--parent", "x"], "--sweep and --parent both name a sweep"),
        (["--sweep", "lab", "--quality", "duplicate_word_rate"], "larger is better, which duplicate_word_rate is not"),
        (["--sweep", "lab", "--level", "95"], "must be between 0 and 1, got 95.0"),
    ],
)
def test_missing_sweeps_and_scores_are_named(uri, monkeypatch, tmp_path, capsys, arguments, message):
    assert run(monkeypatch, "--mlflow", uri, "--out", str(tmp_path), *arguments) == 2
    assert message in capsys.readouterr().err


def test_no_database_is_made(monkeypatch, tmp_path, capsys):
    place = Path(tmp_path / "no.db")
    assert run(monkeypatch, "--mlflow", f"sqlite:///{place}") == 2
    assert "there is no database" in capsys.readouterr().err
    assert not place.exists()


def test_other_variants_of_a_score_are_not_tested():
    """One cell was scored where jieba is, the other where it is not."""
    cells = [Measured(name=name, key=(name, "", 8), seed=0, scores={}) for name in ("dcd", "ce")]
    signatures = [{"rouge_l": f"rouge_l|words:{how}", "finding_f1": "finding_f1"} for how in ("jieba", "single")]
    own = {name: replace(counts(20, 0.5), signatures=one) for name, one in zip(("dcd", "ce"), signatures, strict=True)}
    found, untested = contrasts(cells, own, ["dcd"], rounds=10)
    assert {one.name for one in found} == {"finding_f1", "valid_sentences", "valid_reports"}
    (line,) = untested
    assert line.startswith("ce, L=8 was not tested against dcd, L=8 by rouge_l: the signatures differ")
