"""Clinical scores of the package radeval (RaTEScore, RadGraph, CheXbert), computed in a process of its own.

radeval loads models from the caches of Hugging Face and of the user, silences all warnings and prints. So it runs in a separate
process, offline, with its caches in a folder of the user's choice; a failure comes back as a reason. Reports and scores go through
pipes and are never written to a file. An empty prediction scores 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from echo_pl.evaluation.scoring import Absent, MetricRows
from echo_pl.metrics.counted import GivenValues

Backend = Literal["ratescore", "ratescore_positive", "radgraph", "chexbert"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
FIGURES: dict[Backend, tuple[str, ...]] = {
    "ratescore": ("ratescore",),
    "ratescore_positive": ("ratescore_positive",),
    "radgraph": ("radgraph_simple", "radgraph_partial", "radgraph_complete"),
    "chexbert": ("chexbert_accuracy_14", "semb_score"),
}
"""The per-report scores of each: RadGraph's three reward levels; CheXbert's share of equal labels and its cosine (SemScore)."""
_DETAIL: dict[Backend, str] = {
    "ratescore": "all entities|0.5 where either report has no entity",
    "ratescore_positive": "negated entities weigh 0 on the side they are compared from|0.5 where either report has no entity",
    "radgraph": "radgraph-xl|F1 by reward level",
    "chexbert": "14 conditions|cosine of CLS embeddings",
}
WORKER = Path(__file__).with_name("radeval_worker.py")


def clinical_scores(
    backend: Backend, predictions: Sequence[str], references: Sequence[str], models: Path | None, *, device: str = "cpu"
) -> tuple[list[MetricRows], list[Absent]]:
    """Score reports with one backend.

    Args:
        backend: name of the backend.
        predictions: formatted like the references, in the same order.
        references: one for each prediction.
        models: folder of models with the layout of the caches: ``huggingface/``, ``chexbert/``, ``radgraph/`` (the content of
            ``XDG_CACHE_HOME`` and ``HF_HOME`` after a first run of radeval); None: no models.
        device: ``cpu`` or ``cuda``.

    Returns:
        The rows of every score, or the absent scores with their reasons.
    """
    if models is None:
        return _absent(backend, "no models given (--clinical-models <folder>)")
    if not models.is_dir():
        return _absent(backend, f"no folder {models} (--clinical-models)")
    scored = [index for index, text in enumerate(predictions) if text]
    job = {"backend": backend, "predictions": [predictions[i] for i in scored], "references": [references[i] for i in scored]}
    done = subprocess.run(
        [sys.executable, "-P", str(WORKER)],  # -P: the folder of the worker must not be on its import path
        input=json.dumps(job | {"device": device}),
        env=_environment(models),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "scores" not in answer:
        return _absent(backend, answer.get("reason") or f"radeval ended with status {done.returncode} and no answer")
    found = []
    for name in FIGURES[backend]:
        scores = torch.zeros(len(predictions), dtype=torch.float64)
        scores[scored] = torch.tensor(answer["scores"][name], dtype=torch.float64)
        variant = f"{name}|radeval {answer['version']}|{_DETAIL[backend]}|empty prediction:0|mean:reports|v1"
        metric = GivenValues(name, variant, True)
        found.append(MetricRows(metric=metric, rows_NK=metric.rows(scores.tolist())))
    return found, []


def _environment(models: Path) -> dict[str, str]:
    folder = models.resolve()
    places = {"XDG_CACHE_HOME": str(folder), "HF_HOME": str(folder / "huggingface"), "NLTK_DATA": str(folder / "nltk_data")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, **places, **offline}


def _absent(backend: Backend, reason: str) -> tuple[list[MetricRows], list[Absent]]:
    return [], [Absent(name=name, reason=reason) for name in FIGURES[backend]]
