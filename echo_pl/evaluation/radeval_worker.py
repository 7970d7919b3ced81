"""Worker of :mod:`echo_pl.evaluation.radeval_backend`: a script that reads one job and writes one line of JSON.

Imports radeval and nothing of this package. An error is reported without words of a report: the missing import or file, or the type
of the error alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Scores = dict[str, list[float]]
NEGATED = ("NON-ABNORMALITY", "NON-DISEASE")


def ratescore(predictions: list[str], references: list[str], device: str, positive_only: bool = False) -> Scores:
    """RaTEScore; ``positive_only`` gives negated entities no weight."""
    scorer = import_module("radeval.metrics.RaTEScore.scorer").RaTEScore(use_gpu=device == "cuda")
    if positive_only:
        scorer.affinity_matrix = {
            (own, other): 0.0 if own in NEGATED else weight for (own, other), weight in scorer.affinity_matrix.items()
        }
    scores, _, _ = scorer.compute_score(candidate_list=predictions, reference_list=references)
    return {"ratescore_positive" if positive_only else "ratescore": [float(score) for score in scores]}


def radgraph(predictions: list[str], references: list[str], device: str) -> Scores:
    """F1 of RadGraph-XL entities and relations, at its three reward levels."""
    # Its vendored part of 2.2.1 imports itself as RadEval, a name that only file systems without case can find.
    sys.modules.setdefault("RadEval", import_module("radeval"))
    scorer = import_module("radeval.metrics.radgraph").F1RadGraph(
        reward_level="all", model_type="radgraph-xl", cuda=0 if device == "cuda" else -1
    )
    levels = scorer(refs=references, hyps=predictions)[1]
    names = ("radgraph_simple", "radgraph_partial", "radgraph_complete")
    return {name: [float(score) for score in own] for name, own in zip(names, levels, strict=True)}


def chexbert(predictions: list[str], references: list[str], device: str) -> Scores:
    """Share of the 14 labels that agree, and the cosine of the embeddings (SemScore)."""
    scorer = import_module("radeval.metrics.f1chexbert.f1chexbert").F1CheXbert(device=device)
    ours, theirs = scorer.get_labels(predictions), scorer.get_labels(references)
    agree = [sum(x == y for x, y in zip(a, b, strict=True)) / len(b) for a, b in zip(ours, theirs, strict=True)]
    pairs = zip(scorer.get_embeddings(predictions), scorer.get_embeddings(references), strict=True)
    return {"chexbert_accuracy_14": agree, "semb_score": [_cosine(a, b) for a, b in pairs]}


BACKENDS: dict[str, Callable[[list[str], list[str], str], Scores]] = {
    "ratescore": ratescore,
    "ratescore_positive": lambda predictions, references, device: ratescore(predictions, references, device, True),
    "radgraph": radgraph,
    "chexbert": chexbert,
}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Scores and the version of radeval, or a reason."""
    try:
        scores = BACKENDS[job["backend"]](job["predictions"], job["references"], job["device"])
        return {"scores": scores, "version": version("radeval")}
    except ImportError as error:
        return {"reason": f"radeval needs a package that is not installed: {error.name or 'unknown'} (pip install radeval)"}
    except PackageNotFoundError:
        return {"reason": "radeval has no version: install it with pip install radeval"}
    except OSError as error:  # of Hugging Face too, where a model is not in its cache
        return {"reason": f"a model is missing in --clinical-models: {str(error).splitlines()[0][:300]}"}


def main() -> None:
    """Read one job from stdin and write one answer to stdout; output of libraries goes to stderr."""
    job, out = json.load(sys.stdin), sys.stdout
    sys.stdout = sys.stderr
    kind: str | None = None
    try:
        found = answer(job)
    except BaseException as error:
        kind = type(error).__name__
        raise
    finally:
        print(json.dumps(found if kind is None else {"reason": f"radeval failed with {kind}"}), file=out, flush=True)


def _cosine(a: Any, b: Any) -> float:
    norm = float((a @ a) ** 0.5 * (b @ b) ** 0.5)
    return float(a @ b) / norm if norm else 0.0


if __name__ == "__main__":
    main()
