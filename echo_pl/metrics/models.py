"""Scores by another model: perplexity under a causal language model, and the cosine of two text embeddings.

Both models are callables and are named in the signature. Do not report either score alone: a report that repeats one sentence has a
low perplexity, and a report that denies a finding has almost the embedding of a report that states it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from echo_pl.metrics.counted import PairMetric, count_rows, mean_rows, paired


class Perplexity(PairMetric):
    """Perplexity of generated reports under a language model.

    ``perplexity`` is that of the corpus, exp(sum of -log p / sum of tokens); ``perplexity_per_report`` is the mean of the
    reports' own. A report without a scored token (an empty one) has no perplexity and is left out of both, so
    read them beside the share of empty reports. nan if no report has one.

    Args:
        score: from a text to the sum of -log p (natural logarithm) over its tokens, and the number of tokens.
        model: name of the language model with the digest of its weights, the version of its library, and the treatment of the
            first token.

    >>> metric = Perplexity(lambda text: (2.0 * len(text.split()), len(text.split())), "two nats a word")
    >>> metric.update(["clear lungs", "clear"], ["", ""])
    >>> [round(value, 3) for value in metric.plain().values()]
    [7.389, 7.389]
    """

    names = ("perplexity", "perplexity_per_report")
    direction = False

    def __init__(self, score: Callable[[str], tuple[float, int]], model: str) -> None:
        super().__init__(4)
        self.score = score
        self.variant = f"perplexity|model:{model}|of predictions|corpus: per token, per_report: mean over reports|v1"

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Sum of -log p, tokens, the report's own perplexity, and 1 if it has one."""
        rows = []
        for prediction, _ in paired(predictions, references):
            surprise, tokens = self.score(prediction) if prediction else (0.0, 0)
            rows.append((surprise, tokens, surprise / tokens, 1) if tokens else (0.0, 0, 0.0, 0))
        found = count_rows(rows, 4)
        found[:, 2] = torch.where(found[:, 3] > 0, found[:, 2].exp(), 0.0)  # inf where math.exp would raise
        return found

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """Both aggregations."""
        surprise, tokens, own, reports = sums.unbind(-1)
        return {"perplexity": (surprise / tokens).exp(), "perplexity_per_report": own / reports}


class EmbeddingSimilarity(PairMetric):
    """Mean cosine between the embeddings of prediction and reference; 0 for an empty prediction. Named after its model.

    Args:
        encode: from texts to (N, E).
        model: short name of the model, part of the figure's name.
        detail: rest of the signature (digest of its weights, pooling).
    """

    direction = True

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], model: str, detail: str = "") -> None:
        super().__init__()
        self.encode = encode
        self.names = (f"cosine_{model}",)
        self.variant = f"cosine|model:{model}{f', {detail}' if detail else ''}|blind to negation|mean:reports|v1"

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Cosine and 1 for each report."""
        pairs = list(paired(predictions, references))
        if not pairs:
            return mean_rows([])
        cosines = cosine_similarity(self.encode(predictions).double(), self.encode(references).double(), dim=-1)
        return mean_rows([float(value) if text else 0.0 for value, (text, _) in zip(cosines, pairs, strict=True)])
