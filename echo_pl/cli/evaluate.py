"""`echo-pl evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from echo_pl.cli.grammar import Overrides, command


def add_commands(app: typer.Typer) -> None:
    """Register the command."""

    @command(
        app,
        "evaluate",
        "echo-pl evaluate --checkpoint outputs/runs/RUN/checkpoints/final.ckpt --out outputs/evaluation/dcd data=synthetic",
        "echo-pl evaluate --predictions ours.jsonl --references test.json --against theirs.json --out both",
        "echo-pl evaluate --upload outputs/evaluation/dcd --mlflow http://server:5000",
    )
    def evaluate(
        overrides: Overrides = None,
        predictions: Annotated[Path | None, Option(help="JSON or JSON lines by sample_id, or the folder of an evaluation.")] = None,
        checkpoint: Annotated[Path | None, Option(help="Decode held-out studies with it; key=value is for this.")] = None,
        upload: Annotated[Path | None, Option(metavar="DIR", help="Only log a finished evaluation to --mlflow.")] = None,
        references: Annotated[
            Path | None, Option(help="Official dataset JSON (default: the references in the predictions).")
        ] = None,
        against: Annotated[Path | None, Option(help="Predictions of another run, or the folder of its evaluation.")] = None,
        free_text: Annotated[bool, Option("--free-text", help="Predictions have no headings: all text is findings.")] = False,
        split: Annotated[Literal["val", "test"] | None, Option(help="With --checkpoint.", show_default="test")] = None,
        studies: Annotated[int | None, Option(help="With --checkpoint: the first studies.", show_default="all")] = None,
        batch_size: Annotated[int | None, Option(help="With --checkpoint: studies at once.", show_default="16")] = None,
        language: Annotated[Literal["en", "zh"], Option(help="Language of the reports.")] = "en",
        sections: Annotated[Literal["both", "findings", "impression"], Option(help="Sections to score.")] = "both",
        reader: Annotated[
            Literal["labeller", "synthetic", "nih"] | None,
            Option(
                help="Reader of findings: the labeller of real reports, or the grammar of a corpus (default: with --checkpoint "
                "that of its corpus, otherwise the labeller)."
            ),
        ] = None,
        vocabulary: Annotated[
            Path | None, Option(help="Corpus folder, or text of training reports, for the non-word rate.")
        ] = None,
        version: Annotated[
            Literal["normalized", "raw"] | None, Option(help="Reports of the --vocabulary corpus.", show_default="normalized")
        ] = None,
        wordnet: Annotated[bool, Option("--wordnet", help="METEOR with nltk's WordNet data, which must be installed.")] = False,
        language_model: Annotated[Path | None, Option(help="Causal language model on disk, for the perplexity.")] = None,
        embedding_model: Annotated[Path | None, Option(help="Sentence encoder on disk, for a cosine named after it.")] = None,
        clinical: Annotated[list[str] | None, Option(metavar="NAME ...", help="Scores of the package radeval, or all.")] = None,
        clinical_models: Annotated[Path | None, Option(help="Folder of its models.")] = None,
        device: Annotated[
            str | None,
            Option(help="Device of models that score; a checkpoint decodes on that of trainer.accelerator.", show_default="cpu"),
        ] = None,
        seed: Annotated[int, Option(help="Seed of resamples and exchanges.")] = 0,
        resamples: Annotated[int, Option(help="Resamples of the bootstrap.")] = 1000,
        rounds: Annotated[int, Option(help="Rounds of the randomisation test.")] = 10_000,
        level: Annotated[float, Option(help="Confidence level of the intervals.")] = 0.95,
        out: Annotated[Path | None, Option(help="Folder to write.")] = None,
        overwrite: Annotated[bool, Option("--overwrite", help="Write over the evaluation in --out.")] = False,
        worst: Annotated[int, Option(help="Worst reports to show.")] = 20,
        worst_by: Annotated[str | None, Option(help="Score to choose them by (default finding F1, without it ROUGE-L).")] = None,
        mlflow: Annotated[
            str | None, Option(metavar="URI", help="Server or sqlite:///FILE to log to, without the words of a report.")
        ] = None,
        mlflow_texts: Annotated[bool, Option("--mlflow-texts", help="Log the reports too (patient data).")] = False,
        experiment: Annotated[str | None, Option(help="Experiment in MLflow.", show_default="evaluation")] = None,
    ) -> None:
        """Score the reports of a file or of a checkpoint.

        A checkpoint decodes held-out studies first. Give one of --predictions, --checkpoint and
        --upload. Writes reports.jsonl, aggregate.json (every score with its interval and
        signature), report.md and index.html (with the worst reports). docs/how-to/evaluation.md
        explains every score.
        """
        given = {**locals(), "overrides": tuple(overrides or ()), "clinical": tuple(clinical or ())}
        from echo_pl.evaluation.evaluate import evaluate, print_scores
        from echo_pl.evaluation.inputs import read_files
        from echo_pl.evaluation.options import Options, check_options, check_upload
        from echo_pl.io.command_line import command_line

        options = Options(**given)
        if options.upload is not None:
            check_upload(options)
        else:
            check_options(options)
            if options.checkpoint is None:
                inputs = read_files(options)
            else:
                from echo_pl.distill.decode_checkpoint import decoded_inputs

                inputs = decoded_inputs(options)
            print_scores(evaluate(options, inputs, command_line()), options.folder)
        if options.mlflow is not None:
            from echo_pl.evaluation.upload import upload as upload_evaluation

            folder = options.upload or options.folder
            run = upload_evaluation(folder, options.mlflow, options.experiment or "evaluation", with_texts=options.mlflow_texts)
            print(f"logged to {options.mlflow} as run {run}")
