"""The evaluate command: from files to results, bad input before anything is lost, MLflow there and gone, and checkpoints."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from commands import command
from hydra.utils import instantiate
from PIL import Image
from stage_parts import BACKBONE, DECODE, lively, record, report_data, write_checkpoint, write_tokens

from echo_pl.__main__ import main as echo_pl_main
from echo_pl.config.compose import compose_config
from echo_pl.distill import decode_checkpoint as evaluate_checkpoint
from echo_pl.distill.decode_checkpoint import Decoded, EosConfidence, decode_checkpoint
from echo_pl.distill.decoder import stage_decoder
from echo_pl.evaluation.cases import Case, Prediction, formatted
from echo_pl.evaluation.metric_choice import judge_reader
from echo_pl.evaluation.predictions import read_predictions, read_references
from echo_pl.reports.labeller import Labeller
from echo_pl.sampling import BlockSampler, TrajectoryRecorder
from echo_pl.structs import ReportText

pytestmark = pytest.mark.slow

GOOD = {"findings": "the lungs are clear. there is a small left pleural effusion.", "impression": "left pleural effusion."}
CLEAR = {"findings": "the lungs are clear. the heart is normal in size.", "impression": "no acute cardiopulmonary disease."}
FAST = ["--resamples", "20", "--rounds", "50"]


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["echo-pl", "evaluate", *map(str, arguments)])
    if status := command("evaluate")(arguments):
        raise SystemExit(status)


def files(folder: Path, predictions: object, references: object) -> tuple[Path, Path]:
    paths = folder / "predictions.json", folder / "references.json"
    for path, content in zip(paths, (predictions, references), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


@pytest.fixture
def inputs(tmp_path):
    references = [{"sample_id": f"s{i}", "images": [], "ground_truth": GOOD if i % 2 else CLEAR} for i in range(6)]
    return files(tmp_path, {f"s{i}": GOOD if i < 5 else "lost" for i in range(6)}, references)


@pytest.fixture
def base(inputs, tmp_path) -> list[object]:
    """Arguments that score the inputs into ``out``."""
    return ["--predictions", inputs[0], "--references", inputs[1], "--out", tmp_path / "out"]


def test_results_are_whole_and_can_be_read_again(inputs, tmp_path, monkeypatch, capsys):
    predictions, references = inputs
    out = tmp_path / "out"
    words = tmp_path / "words.txt"
    words.write_text("the lungs are clear there is a small left pleural")
    run(
        monkeypatch, "--predictions", predictions, "--references", references, "--out", out, "--reader", "synthetic",
        "--vocabulary", words, "--clinical", "all", *FAST,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "findings_f1_micro" in shown
    assert "absent: perplexity: no language model" in shown
    aggregate = json.loads((out / "aggregate.json").read_text())
    assert aggregate["reports"] == 6
    assert aggregate["figures"]["unparsable"]["value"] == pytest.approx(1 / 6)
    assert aggregate["figures"]["non_word_rate"]["value"] == pytest.approx(2 / 14)
    assert aggregate["figures"]["hallucinated_findings"]["value"] == pytest.approx(3 / 6)
    assert aggregate["figures"]["omitted_findings"]["value"] == pytest.approx(1 / 6)
    assert "no models given" in aggregate["absent"]["semb_score"]
    assert "effusion" in (out / "index.html").read_text()
    assert "pleural effusion" not in (out / "aggregate.json").read_text(), "no report's words"
    assert read_references(out) == read_references(references)
    again = tmp_path / "again"
    run(monkeypatch, "--predictions", out, "--out", again, "--against", out, "--reader", "synthetic", *FAST)
    second = json.loads((again / "aggregate.json").read_text())
    for name, figure in second["figures"].items():
        assert figure == aggregate["figures"][name]
    assert {one["p"] for one in second["against"].values()} == {1.0}
    assert read_predictions(again) == read_predictions(out)


def failure(monkeypatch, capsys, *arguments: object, status: int = 2) -> str:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments, *(() if "--upload" in arguments else FAST))
    assert caught.value.code == status
    return capsys.readouterr().err


def test_ids_that_do_not_match_are_listed_whole_in_a_file(tmp_path, monkeypatch, capsys):
    predictions, references = files(
        tmp_path, {f"p{i}": GOOD for i in range(14)}, [{"sample_id": f"r{i}", "ground_truth": GOOD} for i in range(3)]
    )
    error = failure(monkeypatch, capsys, "--predictions", predictions, "--references", references, "--out", tmp_path / "out")
    assert "14 ids only in predictions" in error
    assert "3 only in references (r0, r1, r2)" in error
    lists = json.loads((tmp_path / "out" / "unmatched_ids.json").read_text())
    assert len(lists["only_in_predictions"]) == 14
    assert lists["only_in_references"] == ["r0", "r1", "r2"]


def test_equal_ids_of_other_studies_are_not_compared(inputs, tmp_path, monkeypatch, capsys):
    """Two corpora that number their studies alike: the other run's references say that it is about others."""
    predictions, references = inputs
    base = ["--predictions", predictions, "--references", references]
    run(monkeypatch, *base, "--out", tmp_path / "one", *FAST)
    elsewhere = [{"sample_id": f"s{i}", "prediction": GOOD, "reference": CLEAR} for i in range(6)]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(elsewhere), encoding="utf-8")
    out = ["--against", other, "--out", tmp_path / "two"]
    error = failure(monkeypatch, capsys, "--predictions", tmp_path / "one", *out)
    assert "3 of 6 studies have another reference in the other run: s1, s3, s5" in error
    run(monkeypatch, *base, *out, *FAST)
    assert (tmp_path / "two" / "aggregate.json").is_file(), "with --references both are scored against one set"


def test_images_that_the_official_format_names_are_shown(tmp_path, monkeypatch, capsys):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    official = [{"sample_id": f"s{i}", "images": [name], "ground_truth": GOOD} for i, name in enumerate(("a.png", "gone.png"))]
    predictions, references = files(tmp_path, {"s0": "no headings", "s1": CLEAR}, official)
    run(monkeypatch, "--predictions", predictions, "--references", references, "--out", tmp_path / "out", *FAST)
    assert (tmp_path / "out" / "index.html").read_text().count('src="data:image/png') == 1
    shown = capsys.readouterr().out
    assert "note: The images of 1 of the reports shown could not be opened." in shown
    assert "note: 1 predictions could not be read as a report" in shown
    assert "--free-text" in shown


def test_the_other_run_is_held_to_the_language_and_its_odd_reports_are_named(base, tmp_path, monkeypatch, capsys):
    base += ["--against", tmp_path / "other.json"]
    chinese = {"findings": "双肺野清晰。", "impression": "未见异常。"}
    (tmp_path / "other.json").write_text(json.dumps({f"s{i}": chinese if i < 4 else GOOD for i in range(6)}), encoding="utf-8")
    error = failure(monkeypatch, capsys, *base)
    assert "4 of 6 predictions of the other run are not in language 'en'" in error
    assert not (tmp_path / "out").exists()
    odd = {"s1": chinese, "s2": "no headings", "s4": "none here either"}
    (tmp_path / "other.json").write_text(json.dumps({f"s{i}": GOOD for i in range(6)} | odd), encoding="utf-8")
    run(monkeypatch, *base, *FAST)
    shown = capsys.readouterr().out
    assert "note: 1 predictions could not be read as a report and score as empty ones: s5." in shown
    assert "note: 2 predictions of the other run could not be read as a report and score as empty ones: s2, s4." in shown
    assert "note: 1 predictions of the other run are in another language: s1." in shown
    aggregate = json.loads((tmp_path / "out" / "aggregate.json").read_text())
    assert (aggregate["other_language"], aggregate["other_language_against"]) == ([], ["s1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--studies", "3"], "--studies is for --checkpoint; all of --predictions are scored"),
        (["--split", "test"], "--split is for --checkpoint"),
        (["--batch-size", "16"], "--batch-size is for --checkpoint"),
        (["--version", "raw"], "--version selects the reports of --vocabulary"),
        (["--mlflow-texts"], "give --mlflow <tracking uri>, too"),
        (["--experiment", "x"], "give --mlflow <tracking uri>, too"),
        (["--device", "cpu"], "--device is where models that score run, and there are none"),
        (["--worst", "-3"], "--worst shows so many reports, 0 or more; got -3"),
        (["--upload", "x", "--mlflow", "sqlite:///x.db"], "leave out --predictions, --references, --out"),
    ],
)
def test_unused_options_are_an_error(base, tmp_path, monkeypatch, capsys, options, message):
    assert message in failure(monkeypatch, capsys, *base, *options)
    assert not (tmp_path / "out").exists()


def test_references_without_the_scored_section_are_an_error(base, inputs, monkeypatch, capsys):
    references = json.loads(inputs[1].read_text())
    references[2]["ground_truth"] = {"findings": "", "impression": "normal."}
    inputs[1].write_text(json.dumps(references))
    error = failure(monkeypatch, capsys, *base, "--sections", "findings")
    assert "1 of 6 references have no findings: s2; score --sections both" in error
    run(monkeypatch, *base, "--sections", "impression", *FAST)


@pytest.mark.parametrize("by", ["length_ratio", "nonsense"])
def test_a_late_error_keeps_an_older_evaluation(base, by, tmp_path, monkeypatch, capsys):
    run(monkeypatch, *base, *FAST)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert by in failure(monkeypatch, capsys, *base, "--overwrite", "--worst-by", by)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("device", "message"),
    [("nonsense", "must be cpu, cuda or"), ("cpu:9x", "must be cpu, cuda or"), ("cuda:99", "GPUs that torch")],
)
def test_an_invalid_device_is_an_error(device, message, inputs, tmp_path, monkeypatch, capsys):
    base = ["--predictions", inputs[0], "--out", tmp_path / "out", "--language-model", tmp_path, "--device", device]
    assert message in failure(monkeypatch, capsys, *base)


def test_scoring_that_fails_leaves_no_figures_of_older_reports(inputs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(monkeypatch, "--predictions", inputs[0], "--references", inputs[1], "--out", out, *FAST)
    case = Case(key="new", prediction=Prediction(report=ReportText(**GOOD)), reference=ReportText(**CLEAR))
    decoded = Decoded(name="x", cases=[case], judge=None, about={}, images=lambda keys: {})
    monkeypatch.setattr(evaluate_checkpoint, "decode_checkpoint", lambda *options: decoded)
    (tmp_path / "no-model").mkdir()
    error = failure(
        monkeypatch, capsys, "--checkpoint", inputs[0], "--out", out, "--overwrite", "--language-model", tmp_path / "no-model"
    )
    assert "cannot be loaded" in error
    assert [file.name for file in out.iterdir()] == ["reports.jsonl"]
    assert list(read_predictions(out)) == ["new"]
    assert "not the folder of a finished evaluation" in failure(monkeypatch, capsys, "--upload", out, "--mlflow", "sqlite:///x.db")


def test_the_command_to_reproduce_is_one_that_works(inputs, tmp_path, monkeypatch):
    out = tmp_path / "my reports"
    base = ["--predictions", inputs[0], "--references", inputs[1], "--out", out, "--overwrite", *FAST]
    monkeypatch.setattr("sys.argv", ["echo-pl", "evaluate", *map(str, base)])
    with pytest.raises(SystemExit) as caught:
        echo_pl_main()
    assert not caught.value.code
    first = (out / "report.md").read_text()
    (shown,) = re.findall(r"## How to reproduce\n\n```sh\n(.*)\n```", first)
    assert shown == shlex.join(["echo-pl", "evaluate", *map(str, base)])
    monkeypatch.setattr("sys.argv", shlex.split(shown))
    with pytest.raises(SystemExit) as caught:
        echo_pl_main()
    assert not caught.value.code
    assert (out / "report.md").read_text() == first


def test_invalid_options_are_reported_before_anything_is_written(base, inputs, tmp_path, monkeypatch, capsys):
    predictions, out = inputs[0], tmp_path / "out"
    for more, message in (
        (["--language-model", tmp_path / "gone"], "--language-model: there is no"),
        (["--language", "zh"], "6 of 6 references are not in language 'zh'"),
        (["--reader", "synthetic", "--language", "zh"], "reads English only"),
        (["--clinical-models", tmp_path], "no use without --clinical"),
        (["--checkpoint", predictions], "one of them"),
        (["block_size=4"], "has no use: block_size=4"),
        (["--level", "2"], "level must be in (0, 1)"),
        (["--against", tmp_path / "gone.json"], "--against: there is no"),
    ):
        assert message in failure(monkeypatch, capsys, *base, *more)
    assert not out.exists()


REAL = {
    "en": (
        [
            ("Small left pleural effusion. The heart is enlarged. No pneumothorax.", "Effusion and cardiomegaly."),
            (
                "The lungs are clear. Left-sided pacemaker. Calcified granuloma in the right upper lobe.",
                "No acute disease.",
            ),
        ],
        [
            ("Moderate left effusion. Heart size is normal. Fracture of the right sixth rib.", "Effusion. Possible pneumonia."),
            ("The lungs are clear. No pleural effusion. Pacemaker in place.", "Normal chest."),
        ],
        # effusion, pacemaker | fracture | cardiomegaly, granuloma; and 4 of 7 regions, 3 of 7
        (2, 1, 2),
        (4 / 7 + 3 / 7) / 2,
    ),
    "zh": (
        [("左侧少量胸腔积液。心影增大。未见气胸。", "左侧胸腔积液。"), ("双肺野清晰。右肺上叶结节。", "右肺上叶结节。")],
        [("左侧胸腔积液。心影大小正常。", "左侧胸腔积液。"), ("双肺野清晰。未见结节。右侧气胸。", "右侧气胸。")],
        # effusion | pneumothorax | cardiomegaly, nodule; and 2 of 7 regions, 1 of 7
        (1, 1, 2),
        (2 / 7 + 1 / 7) / 2,
    ),
}


@pytest.mark.parametrize("language", REAL)
def test_real_reports_are_read_by_the_labeller_by_default(language, tmp_path, monkeypatch):
    wanted, written, (hits, extra, missed), regions = REAL[language]
    predictions, references = files(
        tmp_path,
        {f"s{i}": {"findings": findings, "impression": impression} for i, (findings, impression) in enumerate(written)},
        [
            {"sample_id": f"s{i}", "images": [], "ground_truth": {"findings": findings, "impression": impression}}
            for i, (findings, impression) in enumerate(wanted)
        ],
    )
    base = ["--predictions", predictions, "--references", references, "--language", language, *FAST]
    run(monkeypatch, *base, "--out", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "aggregate.json").read_text())["figures"]
    assert figures["findings_f1_micro"]["value"] == pytest.approx(2 * hits / (2 * hits + extra + missed))
    assert figures["hallucinated_findings"]["value"] == pytest.approx(extra / 2)
    assert figures["omitted_findings"]["value"] == pytest.approx(missed / 2)
    assert figures["region_completeness"]["value"] == pytest.approx(regions)
    assert f"labeller:echo-pl {Labeller.version}|" in figures["findings_f1_micro"]["signature"]


def test_an_evaluation_is_overwritten_only_on_request(base, monkeypatch, capsys):
    run(monkeypatch, *base, *FAST)
    assert "there is an evaluation in" in failure(monkeypatch, capsys, *base)
    run(monkeypatch, *base, "--overwrite", *FAST)


def test_a_server_that_is_down_loses_nothing_and_the_upload_works_later(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    out, database = tmp_path / "my reports", f"sqlite:///{tmp_path / 'later' / 'mlflow.db'}"
    base = ["--predictions", inputs[0], "--references", inputs[1], "--out", out]
    where = ["--mlflow", "http://127.0.0.1:9", "--experiment", "one step"]
    error = failure(monkeypatch, capsys, *base, *where, status=1)
    assert f"the evaluation is whole in {out}" in error
    upload = shlex.join(["echo-pl", "evaluate", "--upload", str(out), *where])
    assert f"upload it later: {upload}\n" in error
    assert (out / "aggregate.json").is_file()
    error = failure(monkeypatch, capsys, "--upload", out, *where, "--mlflow-texts", status=1)
    assert f"upload it later: {upload} --mlflow-texts\n" in error
    run(monkeypatch, "--upload", out, "--mlflow", database)
    client = mlflow.MlflowClient(database)
    (found,) = client.search_runs([client.get_experiment_by_name("evaluation").experiment_id])
    aggregate = json.loads((out / "aggregate.json").read_text())
    assert found.data.metrics["eval/bleu_2"] == pytest.approx(aggregate["figures"]["bleu_2"]["value"])
    assert found.data.metrics["eval/bleu_2_low"] <= found.data.metrics["eval/bleu_2"]
    assert [one.path for one in client.list_artifacts(found.info.run_id)] == ["aggregate.json"], "texts are not logged unasked"
    assert not Path("mlruns").exists()
    assert "is not the folder of a finished evaluation" in failure(monkeypatch, capsys, "--upload", tmp_path, "--mlflow", database)
    assert "--upload needs --mlflow" in failure(monkeypatch, capsys, "--upload", out)
    for unused in (("--studies", "3"), ("--resamples", "20"), ("--worst", "3"), ("--language", "zh"), ("--overwrite",)):
        error = failure(monkeypatch, capsys, "--upload", out, "--mlflow", database, *unused)
        assert f"--upload logs a finished evaluation: leave out {unused[0]}" in error


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_data) -> Path:
    """A corpus, and a model with random weights, whose reports sometimes end, as two stages."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "data").symlink_to(small_data)
    data = report_data(folder / "data" / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    for stage in ("pretrain", "rad", "dcd", "warmup"):
        write_checkpoint(folder / f"{stage}.ckpt", vlm, record(stage, vocabulary=data.vocabulary_fingerprint))
    yield folder
    torch.set_num_threads(1)


def settings(folder: Path) -> list[str]:
    names = [
        "width",
        "layers",
        "heads",
        "key_heads",
        "mlp_width",
        *(f"vision_{name}" for name in ("width", "layers", "heads", "mlp_width")),
    ]
    sizes = [f"backbone.factory.{name}={getattr(BACKBONE, name)}" for name in names]
    return [*sizes, f"data_root={folder / 'data'}", f"outputs={folder}", "min_free_gb=0", "threads=1"]


def test_a_checkpoint_is_decoded_as_its_stage_is(folder):
    tokens, forwards = {}, {}
    for stage in ("pretrain", "rad", "dcd"):
        decoded = decode_checkpoint(folder / f"{stage}.ckpt", settings(folder), "test", None, 2)
        assert len(decoded.cases) == 6
        assert decoded.judge == "synthetic"
        assert ("in one step" in decoded.name) == (stage == "dcd")
        tokens[stage] = decoded.about["tpf"]
        for case in decoded.cases:
            assert (case.prediction.eos_confidence is not None) == case.prediction.stopped
        assert decoded.about["nfe"] == pytest.approx(sum(case.prediction.nfe for case in decoded.cases) / 6)
        assert ("forwards_per_block" in decoded.about) == (stage != "pretrain")
        forwards[stage] = [case.prediction.forwards_per_block for case in decoded.cases]
    assert tokens["pretrain"] < 1.1
    assert tokens["dcd"] > 2 * tokens["rad"], "stage 3 takes one step a block"
    assert set(forwards["dcd"]) == {1.0}
    assert set(forwards["pretrain"]) == {None}, "token by token there are no blocks"
    assert min(forwards["rad"]) > 2
    with pytest.raises(ValueError, match="stage warmup, which writes no reports"):
        decode_checkpoint(folder / "warmup.ckpt", settings(folder), "test", None, 2)
    with pytest.raises(ValueError, match="block_size"):
        decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), "block_size=4"], "test", None, 2)
    steps = "stage.module.decode.denoising_steps=4"
    with pytest.raises(ValueError, match=r"decode\.denoising_steps: a student writes each block in one step.*student.gate"):
        decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), steps], "test", None, 2)
    assert decode_checkpoint(folder / "rad.ckpt", [*settings(folder), steps], "test", 1, 2).cases
    with pytest.raises(ValueError, match="stage: these are the checkpoint's own"):
        decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), "stage=rad"], "test", None, 2)
    for studies, message in ((0, "0 studies of split test"), (7, "split test has 6 studies, 7 were asked for")):
        with pytest.raises(ValueError, match=message):
            decode_checkpoint(folder / "dcd.ckpt", settings(folder), "test", studies, 2)


def test_a_gated_student_takes_second_steps_and_counts_them(folder):
    gated = decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), "stage.module.student.gate=1.0"], "test", None, 2)
    found = [case.prediction.forwards_per_block for case in gated.cases]
    assert all(1.0 < forwards <= 2.0 for forwards in found)
    assert min(found) <= gated.about["forwards_per_block"] <= max(found)


def test_a_student_with_bigrams_is_decoded_with_what_its_trajectories_hold(folder, tmp_path):
    data = report_data(folder / "data" / "synthetic")
    write_tokens(tmp_path / "store", [[20, 21, 20, 21], [21, 20, 22, 20]], data.fingerprint)
    weight, stored = "stage.module.student.bigrams=2.0", f"stage.module.trajectories={tmp_path / 'store'}"
    config = compose_config(["stage=dcd", weight, stored, "stage.module.student.gate=0.3"])
    vlm = BACKBONE.build(data.special, data.vocab_size)
    sampler = stage_decoder(config, data, kv_cache="vanilla").one_step(vlm)
    decode = instantiate(config.stage.module.decode, _convert_="all")
    assert sampler.config == replace(decode, kv_cache="vanilla", denoising_steps=1, gate=0.3)
    assert sampler.bigrams is not None
    assert sampler.bigrams.weight == 2.0
    followers = sampler.bigrams.log_ratio(torch.tensor([20, 20, 20]), torch.tensor([21, 22, 20]))
    assert followers.argmax() == 1, "22 comes once, and behind 20"
    assert followers.argmin() == 2, "20 never follows itself"
    assert len(decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), weight, stored], "test", 2, 2).cases) == 2
    often = compose_config(["stage=dcd", weight, stored, "stage.module.student.min_count=2"])
    often.stage.module.student.repeats = False
    bigrams = stage_decoder(often, data).bigrams
    assert bigrams is not None
    assert len(bigrams.pair_N) < len(sampler.bigrams.pair_N)
    assert bigrams.once_V is not None
    assert bigrams.once_V.nonzero().flatten().tolist() == data.word_starts()
    with pytest.raises(ValueError, match=r"student\.min_count=2 has no effect"):
        decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), "stage.module.student.min_count=2"], "test", None, 2)
    with pytest.raises(ValueError, match=r"student.bigrams=2.0 counts pairs of tokens in stored trajectories"):
        decode_checkpoint(folder / "dcd.ckpt", [*settings(folder), weight], "test", None, 2)


def test_the_eos_confidence_is_that_of_the_recorded_trajectory(folder):
    data = report_data(folder / "data" / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    batch = data.held_out_batches("test", 5, 5)[0]
    watch, recorder = EosConfidence(data.special.eos), TrajectoryRecorder()
    sampler = BlockSampler(vlm, data.special, replace(DECODE, denoising_steps=2))
    result = sampler.generate(batch, watch)
    sampler.generate(batch, recorder)
    assert 0 < int(result.stopped_B.sum()) < 5, "the example must have both"
    for row, trajectory in enumerate(recorder.trajectories(batch.keys)):
        places = (trajectory.token_R == data.special.eos).nonzero()
        expected = float(trajectory.confidence_R[places[0, 0]]) if len(places) else None
        assert watch.confidence(row) == (expected if expected is None else pytest.approx(expected))


def test_the_judge_reads_the_same_findings_from_the_text_that_is_scored(folder):
    data = report_data(folder / "data" / "synthetic")
    label = judge_reader(data.judge, "judge").label
    references = [one for batch in data.held_out_batches("test", 5, 5) for one in batch.references]
    found = [data.judge.parse(reference).findings for reference in references]
    assert any(found)
    assert [set(label(formatted(reference))) for reference in references] == [set(findings) for findings in found]


def test_an_unwritable_folder_is_reported_before_the_decode(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluate_checkpoint, "decode_checkpoint", lambda *_: pytest.fail("decoded"))
    base = ["--checkpoint", folder / "dcd.ckpt", "--out", tmp_path / "file" / "out"]
    assert "Not a directory" in failure(monkeypatch, capsys, *base, *settings(folder))


def test_an_empty_batch_is_an_error(folder, tmp_path, monkeypatch, capsys):
    base = ["--checkpoint", folder / "dcd.ckpt", "--out", tmp_path / "out", "--batch-size", "0"]
    assert "0 at once" in failure(monkeypatch, capsys, *base, *settings(folder))


def test_what_was_decoded_is_kept_when_scoring_fails(folder, tmp_path, monkeypatch, capsys):
    base = ["--checkpoint", folder / "dcd.ckpt", "--studies", "3", "--out", tmp_path / "out", "--batch-size", "3"]
    error = failure(monkeypatch, capsys, *base, "--language-model", tmp_path, *settings(folder))
    assert "cannot be loaded" in error
    kept = read_predictions(tmp_path / "out")
    assert len(kept) == 3
    monkeypatch.setattr(evaluate_checkpoint, "decode_checkpoint", None)  # it is not decoded again
    run(
        monkeypatch, "--predictions", tmp_path / "out", "--out", tmp_path / "out", "--reader", "synthetic",
        "--vocabulary", folder / "data" / "synthetic", *FAST,
    )  # fmt: skip
    figures = json.loads((tmp_path / "out" / "aggregate.json").read_text())["figures"]
    assert "normalized training reports of corpus" in figures["non_word_rate"]["signature"]
    assert figures["stopped"]["value"] == pytest.approx(sum(one.stopped for one in kept.values()) / 3)
