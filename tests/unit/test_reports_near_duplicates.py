"""Near-duplicates against every pair compared, one by one; vectors against what they should be."""

from __future__ import annotations

import importlib.util
import math
import random
from itertools import pairwise

import numpy as np
import pytest

from echo_pl.reports import embeddings
from echo_pl.reports.embeddings import MINILM_PACKAGE, MiniLMEmbedder, NgramEmbedder, default_embedder, minilm_folder, unit_rows
from echo_pl.reports.near_duplicates import Duplicate, critical_words, find_near_duplicates


class Given:
    """Vectors by text, as a test wants them."""

    name = "given"
    threshold = 0.9

    def __init__(self, width: int, seed: int, count: int) -> None:
        self.width = width
        generator = np.random.default_rng(seed)
        centres = generator.normal(size=(max(1, count // 5), width))
        noise = generator.uniform(0.0, 0.6, size=(count, 1))
        picked = centres[generator.integers(len(centres), size=count)] + noise * generator.normal(size=(count, width))
        self.vectors = unit_rows(picked.astype(np.float32))

    def embed(self, texts):
        return self.vectors[[int(text.split()[0]) for text in texts]]


def brute_force(train, held_out, embedder, threshold, signature) -> list[tuple[str, str, bool]]:
    """Every pair by plain Python arithmetic, without vectors of numpy, blocks or groups."""

    def row(text: str) -> list[float]:
        return [float(value) for value in embedder.embed([text])[0]]

    stays = [(key, row(text), signature(text), True) for key, text in held_out]
    found = []
    for key, text in train:
        vector, mark = row(text), signature(text)
        for other, there, sign, held in stays:
            dot = math.fsum(a * b for a, b in zip(vector, there, strict=True))
            norms = math.sqrt(math.fsum(a * a for a in vector) * math.fsum(b * b for b in there))
            if mark == sign and dot >= threshold * norms > 0:
                found.append((key, other, held))
                break
        else:
            stays.append((key, vector, mark, False))
    return found


def studies(count: int, start: int = 0, marks: int = 3) -> list[tuple[str, str]]:
    return [(f"s{i}", f"{i} {'no ' * (i % marks)}") for i in range(start, start + count)]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("threshold", [0.8, 0.93])
def test_the_same_as_every_pair(block, threshold, monkeypatch):
    monkeypatch.setattr("echo_pl.reports.near_duplicates._CHUNK", 16)
    embedder = Given(24, 5, 300)
    held_out, train = studies(60, 240), studies(240)

    def signature(text: str) -> str:
        return str(text.count("no"))

    wanted = brute_force(train, held_out, embedder, threshold, signature)
    found = list(find_near_duplicates(train, held_out, embedder, threshold=threshold, signature=signature, block=block))
    assert [(one.key, one.of, one.held_out) for one in found] == wanted
    assert 20 < len(wanted) < 220, "there is something to find and something to keep"
    assert {one.held_out for one in found} == {True, False}
    assert all(threshold <= one.cosine <= 1 for one in found)


def test_the_first_stays_and_no_duplicate_of_a_held_out_study_does():
    train = [
        ("a", "The heart is enlarged with a small left effusion."),
        ("b", "Clear lungs and a normal heart."),
        ("c", "The heart is enlarged with a small left effusion"),
        ("d", "Clear lungs, and a normal heart."),
    ]
    held_out = [("x", "Clear lungs and a normal heart"), ("y", "Clear lungs and a normal heart.")]
    found = list(find_near_duplicates(train, held_out, NgramEmbedder()))
    assert [(one.key, one.of, one.held_out) for one in found] == [("b", "x", True), ("c", "a", False), ("d", "x", True)]
    assert found[0] == Duplicate(key="b", of="x", held_out=True, cosine=1.0)


def test_a_chain_is_not_followed_through_what_was_left_out():
    angle = math.acos(0.95)

    class Circle:
        name, width, threshold = "circle", 2, 0.94

        def embed(self, texts):
            return unit_rows(np.array([[math.cos(angle * int(t)), math.sin(angle * int(t))] for t in texts], dtype=np.float32))

    found = list(find_near_duplicates([(t, t) for t in "01234"], [], Circle(), signature=lambda text: ""))
    assert [(one.key, one.of) for one in found] == [("1", "0"), ("3", "2")]


def test_negations_sides_and_numbers_are_never_passed_over():
    pairs = [
        ("There is a pneumothorax.", "There is no pneumothorax."),
        ("Effusion on the left.", "Effusion on the right."),
        ("Nodule of 4 mm.", "Nodule of 14 mm."),
        ("左侧胸腔积液。", "右侧胸腔积液。"),
        ("可见气胸。", "未见气胸。"),
    ]
    for one, other in pairs:
        assert critical_words(one) != critical_words(other)
        assert not list(find_near_duplicates([("a", one), ("b", other)], [], NgramEmbedder(), threshold=0.01))
    assert critical_words("Leftover notes, normal.") == ""


def test_wrong_arguments():
    for changed, message in (({"threshold": 0.0}, "threshold"), ({"threshold": 1.1}, "threshold"), ({"block": 0}, "block")):
        with pytest.raises(ValueError, match=message):
            list(find_near_duplicates([], [], NgramEmbedder(), **changed))
    with pytest.raises(ValueError, match="study a is repeated"):
        list(find_near_duplicates([("a", "x")], [("a", "y")], NgramEmbedder()))
    with pytest.raises(ValueError, match="width"):
        NgramEmbedder(0)


def test_texts_without_words_are_no_duplicates():
    assert not list(find_near_duplicates([("a", ""), ("b", " ... ")], [("c", "")], NgramEmbedder()))


def test_ngrams_estimate_the_cosine_of_the_counts():
    """Hashing into E places is an unbiased estimate of the cosine of the uncut vectors, off by about 1 / sqrt(E)."""
    generator = random.Random(3)
    words = [f"word{'abcdefghijklmnopqrstuvwxyz'[i % 26]}{'xyz'[i % 3]}" for i in range(60)]
    texts = [" ".join(generator.choices(words, k=40)) for _ in range(12)]
    texts += [text.replace("worda", "wordb", 2) for text in texts]

    def counts(text: str) -> dict[str, float]:
        parts = text.split()
        grams = parts + [" ".join(pair) for pair in pairwise(parts)]
        return {gram: math.sqrt(grams.count(gram)) for gram in grams}

    exact = [counts(text) for text in texts]
    vectors = NgramEmbedder(4096).embed(texts).astype(np.float64)
    for i, one in enumerate(exact):
        for j, other in enumerate(exact):
            dot = sum(value * other.get(gram, 0.0) for gram, value in one.items())
            norms = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
            assert vectors[i] @ vectors[j] == pytest.approx(dot / norms, abs=5 / math.sqrt(4096))


def test_without_minilm_the_fallback_says_so(monkeypatch, caplog):
    monkeypatch.setattr(embeddings, "MINILM_PACKAGE", "no_such_package_anywhere")
    found = default_embedder()
    assert isinstance(found, NgramEmbedder)
    assert "MiniLM is not installed" in caplog.text
    with pytest.raises(FileNotFoundError, match="no sentence model in"):
        MiniLMEmbedder("/no/such/folder")


@pytest.mark.skipif(importlib.util.find_spec(MINILM_PACKAGE) is None, reason=f"{MINILM_PACKAGE} is not installed")
def test_minilm_does_not_see_batches_and_tells_meanings_apart(caplog):
    found = default_embedder()
    assert isinstance(found, MiniLMEmbedder)
    assert found.width == 384
    assert not caplog.text
    texts = ["The heart is enlarged.", "Cardiomegaly is present.", "There is a fracture of the left clavicle with displacement."]
    vectors = found.embed(texts).astype(np.float64)
    alone = np.concatenate([MiniLMEmbedder(minilm_folder(), batch_size=1).embed([text]) for text in texts]).astype(np.float64)
    assert np.abs(vectors - alone).max() < 2e-3
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=2e-3)
