"""Small reports to score, made of a few sentences; and what two processes do with them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from echo_pl.metrics.bleu import Bleu
from echo_pl.metrics.cider import Cider
from echo_pl.metrics.counted import GivenValues, PairMetric
from echo_pl.metrics.findings import FindingScores
from echo_pl.metrics.words import words_of

SENTENCES = [
    "The lungs are clear.",
    "The heart is enlarged.",
    "No pleural effusion or pneumothorax, as before.",
    "There is a small left pleural effusion.",
    "Heart size is normal.",
    "Nodules of 2.5 cm are seen in the right upper lobe.",
    "The nodule has grown; compared with the earlier nodule it is larger.",
    "Sternal wires are unchanged.",
]
CONCEPTS = ("cardiomegaly", "effusion", "nodule")
CUES = {"enlarged": "cardiomegaly", "small left pleural effusion": "effusion", "nodule": "nodule"}


@dataclass(frozen=True)
class Found:
    status: str


def label(text: str) -> dict[str, Found]:
    """A labeller of three concepts; a nodule that has a question mark after it is uncertain."""
    text = text.lower()
    labels = {concept: Found("positive") for cue, concept in CUES.items() if cue in text}
    if "no pleural effusion" in text and "effusion" not in labels:
        labels["effusion"] = Found("negative")
    if "nodule?" in text:
        labels["nodule"] = Found("uncertain")
    return labels


def reports(seed: int, count: int, most: int = 6) -> list[str]:
    """Reports of 1 to ``most`` sentences; some of their words left out or repeated."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        words = " ".join(generator.choice(SENTENCES) for _ in range(generator.randint(1, most))).split()
        changed = [word for word in words for _ in range(generator.choices((1, 0, 2), (16, 1, 1))[0])]
        found.append(" ".join(changed or words))
    return found


def metrics() -> list[PairMetric]:
    """One that gathers reports, two that sum counts."""
    words = words_of("en")
    return [Cider(words, clipped=True), Bleu(words), FindingScores(label, CONCEPTS, "test")]


def scored(predictions: list[str], references: list[str]) -> tuple[dict[str, float], list[str]]:
    """The figures, and the signatures of their metrics after them."""
    found: dict[str, float] = {}
    signatures = []
    for metric in metrics():
        for start in range(0, len(predictions), 2):
            metric.update(predictions[start : start + 2], references[start : start + 2])
        found |= metric.plain()
        signatures.append(metric.signature)
    return found, signatures


def on_rank(rank: int, folder: str, shares: dict[str, list[list[int]]]) -> None:
    """Score this rank's share of the reports, for each way of sharing them, and write what comes out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, own in shares.items():
        _score_share(own[rank], Path(folder, f"{name}-{rank}.json"))
    dist.destroy_process_group()


def _score_share(own: list[int], file: Path) -> None:
    predictions, references = reports(1, 7), reports(2, 7)
    figures, signatures = scored([predictions[i] for i in own], [references[i] for i in own])
    given = GivenValues("stopped", "stopped", True)
    given.update([float(i % 2) for i in own])
    before = given.signature
    figures |= given.plain()
    signatures.append(given.signature)
    given.update([1.0])
    file.write_text(
        json.dumps({"figures": figures, "signatures": signatures, "before": before, "after": given.signature}), encoding="utf-8"
    )
