"""The options of ``echo-pl evaluate`` and what of them does not go together. Computes nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from echo_pl.evaluation.radeval_backend import BACKENDS
from echo_pl.evaluation.score_files import AGGREGATE

LABELLER = "labeller"
"""Reads real reports, English and Chinese."""
JUDGES = ("synthetic", "nih")
"""Corpora whose sentences are all known, in English."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="echo-pl evaluate", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    inputs = whole.add_argument_group("what to score (one of the first three)")
    inputs.add_argument("--predictions", type=Path, help="JSON or JSON lines by sample_id, or a folder of an evaluation")
    inputs.add_argument("--checkpoint", type=Path, help="decode held-out studies with it; more configuration as for echo-pl")
    inputs.add_argument("--upload", type=Path, metavar="DIR", help="only log an evaluation that is there to --mlflow")
    inputs.add_argument("--references", type=Path, help="official dataset JSON; without: the references beside the predictions")
    inputs.add_argument("--against", type=Path, help="predictions of another run, or the folder of its evaluation")
    inputs.add_argument("--free-text", action="store_true", help="predictions have no headings: all of their text is findings")
    inputs.add_argument("--split", choices=("val", "test"), help="with --checkpoint (default test)")
    inputs.add_argument("--studies", type=int, help="with --checkpoint: the first so many studies (default all)")
    inputs.add_argument("--batch-size", type=int, help="with --checkpoint: studies at once (default 16)")
    inputs.add_argument("overrides", nargs="*", help="with --checkpoint: configuration, as for echo-pl: data=nih ...")
    scores = whole.add_argument_group("scores")
    scores.add_argument("--language", choices=("en", "zh"), default="en", help="of the reports (default en)")
    scores.add_argument("--sections", choices=("both", "findings", "impression"), default="both", help="of a report to score")
    scores.add_argument(
        "--reader",
        choices=(LABELLER, *JUDGES),
        help="who reads findings: the labeller of real reports, or the grammar of a corpus whose sentences are all known (default: "
        "with --checkpoint that of its corpus if it has one, otherwise the labeller)",
    )
    scores.add_argument("--vocabulary", type=Path, help="corpus folder, or a text of training reports: for the non-word rate")
    scores.add_argument("--version", choices=("normalized", "raw"), help="reports of the --vocabulary corpus (default normalized)")
    scores.add_argument("--wordnet", action="store_true", help="METEOR with nltk's WordNet data, which must be there")
    scores.add_argument("--language-model", type=Path, help="causal language model on disk: for the perplexity")
    scores.add_argument("--embedding-model", type=Path, help="sentence encoder on disk: for a cosine named after it")
    scores.add_argument("--clinical", nargs="+", default=[], choices=(*BACKENDS, "all"), help="scores of the package radeval")
    scores.add_argument("--clinical-models", type=Path, help="folder of its models: huggingface/, chexbert/, radgraph/")
    scores.add_argument(
        "--device", help="where models that score run (default cpu); a checkpoint decodes where trainer.accelerator= says"
    )
    sampling = whole.add_argument_group("intervals and tests")
    sampling.add_argument("--seed", type=int, default=0, help="of resamples and exchanges (default 0)")
    sampling.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    sampling.add_argument("--rounds", type=int, default=10_000, help="of the randomisation test (default 10000)")
    sampling.add_argument("--level", type=float, default=0.95, help="of the intervals (default 0.95)")
    results = whole.add_argument_group("results")
    results.add_argument("--out", type=Path, help="folder to write")
    results.add_argument("--overwrite", action="store_true", help="write over an evaluation that is there")
    results.add_argument("--worst", type=int, default=20, help="reports to show (default 20)")
    results.add_argument("--worst-by", help="score to choose them by (default finding F1, without one ROUGE-L)")
    results.add_argument("--mlflow", metavar="URI", help="tracking server or sqlite:///<file> to log to; no report's words")
    results.add_argument("--mlflow-texts", action="store_true", help="log the reports too (patient data)")
    results.add_argument("--experiment", help="of MLflow (default evaluation)")
    return whole


def refuse_bad_options(args: argparse.Namespace) -> None:
    """Whatever can be wrong before anything is computed.

    Raises:
        ValueError: with the way out.
        FileNotFoundError: a file or model that was named is not there.
        FileExistsError: there is an evaluation in ``--out``.
    """
    if (args.predictions is None) == (args.checkpoint is None):
        raise ValueError("give --predictions <file> or --checkpoint <file>, one of them")
    _refuse_unused(args)
    if args.out is None:
        raise ValueError("give --out <folder> to write to")
    if args.predictions is not None and args.overrides:
        raise ValueError(f"configuration is for --checkpoint; with --predictions it has no use: {' '.join(args.overrides)}")
    if args.checkpoint is not None and (args.references is not None or args.free_text):
        raise ValueError("--references and --free-text are for --predictions; a checkpoint's studies have their own references")
    for name in ("predictions", "checkpoint", "references", "against", "vocabulary", "language_model", "embedding_model"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            raise FileNotFoundError(f"--{name.replace('_', '-')}: there is no {path}")
    if args.clinical_models is not None and not args.clinical:
        raise ValueError(f"--clinical-models has no use without --clinical ({', '.join(BACKENDS)} or all)")
    if args.worst < 0:
        raise ValueError(f"--worst shows so many reports, 0 or more; got {args.worst}")
    _check_device(args)
    if args.reader in JUDGES and args.language != "en":
        raise ValueError(f"--reader {args.reader} knows English sentences only; for {args.language!r} give --reader {LABELLER}")
    if (args.out / AGGREGATE).exists() and not args.overwrite:
        raise FileExistsError(f"there is an evaluation in {args.out}: give another --out, or --overwrite")


def refuse_with_upload(args: argparse.Namespace) -> None:
    """Whatever has no use beside ``--upload``, or lacks.

    Raises:
        ValueError: with the way out.
    """
    used = ("upload", "mlflow", "mlflow_texts", "experiment")
    defaults = vars(parser(None).parse_args([]))
    unused = [name for name, value in vars(args).items() if name not in used and value != defaults[name]]
    if unused:
        options = ", ".join("configuration" if name == "overrides" else f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(f"--upload logs an evaluation that is there: leave out {options}")
    if args.mlflow is None:
        raise ValueError("--upload needs --mlflow <tracking uri>")


def _check_device(args: argparse.Namespace) -> None:
    if args.device is None:
        return
    if args.language_model is None and args.embedding_model is None and not args.clinical:
        raise ValueError(
            "--device is where models that score run, and there are none (--language-model, --embedding-model, --clinical); a "
            "checkpoint decodes where trainer.accelerator= says"
        )
    try:
        device = torch.device(args.device)
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda or cuda:<number>, got {args.device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:<number>, got {args.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {args.device}: this machine has {torch.cuda.device_count()} GPUs that torch can use")


def _refuse_unused(args: argparse.Namespace) -> None:
    for name in ("split", "studies", "batch_size"):
        if args.checkpoint is None and getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for --checkpoint; all of --predictions are scored")
    if args.version is not None and args.vocabulary is None:
        raise ValueError("--version says which reports of --vocabulary to read: give that, too")
    if args.mlflow is None and (args.mlflow_texts or args.experiment is not None):
        raise ValueError("--mlflow-texts and --experiment say how to log: give --mlflow <tracking uri>, too")
