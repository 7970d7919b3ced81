"""NIH ChestX-ray14: real images with 14 labels, read from a folder and put into words through the region table.

The folder holds ``images/`` and ``manifest.jsonl`` (image, labels, view, age, sex, patient). Its labels name no side
and no size, so neither do the reports. Split by patient. Source: Wang et al., CVPR 2017; NIH Clinical Center.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from echo_pl.data.store.study import Study, Version
from echo_pl.data.synthetic.grammar import Finding, Observation, ReportGrammar, Wording
from echo_pl.data.synthetic.grammar_judge import GrammarJudge

NO_FINDING: Final = "No Finding"
MAX_FINDINGS: Final = 8
"""Most labels of one image that a report names; the data set has none with more than nine."""

_TERMS: Final[Mapping[str, tuple[str, str]]] = {
    "Atelectasis": ("lungs", "atelectasis"),
    "Consolidation": ("lungs", "consolidation"),
    "Infiltration": ("lungs", "pulmonary infiltrate"),
    "Pneumonia": ("lungs", "pneumonia"),
    "Edema": ("lungs", "pulmonary edema"),
    "Emphysema": ("lungs", "emphysema"),
    "Fibrosis": ("lungs", "pulmonary fibrosis"),
    "Nodule": ("lungs", "pulmonary nodule"),
    "Mass": ("lungs", "pulmonary mass"),
    "Pneumothorax": ("lungs", "pneumothorax"),
    "Cardiomegaly": ("heart", "cardiomegaly"),
    "Effusion": ("diaphragm", "pleural effusion"),
    "Pleural_Thickening": ("diaphragm", "pleural thickening"),
    "Hernia": ("diaphragm", "hiatal hernia"),
}


def _finding(label: str, region: str, term: str) -> Finding:
    return Finding(
        name=label.lower(),
        region=region,
        wordings=(
            f"there are signs of {term}.",
            f"{term} is present.",
            f"the image shows {term}.",
            f"findings consistent with {term}.",
            f"{term} is noted.",
        ),
        summaries=(term, f"signs of {term}"),
        brief=(f"{term}.", f"{term} seen."),
    )


NIH_FINDINGS: Final[tuple[Finding, ...]] = tuple(_finding(label, *place) for label, place in _TERMS.items())


@dataclass(frozen=True, kw_only=True)
class _Row:
    image: str
    labels: tuple[str, ...]
    patient: str
    meta: Mapping[str, str]


class NIHCorpus:
    """Reads the folder and makes studies of it.

    Args:
        source: The folder.
        seed: Seed of the split and of the wordings.
        wording: ``peaked`` or ``even`` shares of the wordings.
        val_share: Share of the images in the validation split.
        test_share: Share of the images in the test split.

    Raises:
        FileNotFoundError: If the folder or its manifest is absent.
        ValueError: If a manifest line is damaged, names an unknown label or a file outside ``images/``, or a share
            is out of range.
    """

    name = "nih"

    def __init__(
        self,
        source: Path | str,
        *,
        seed: int = 0,
        wording: Wording = "peaked",
        val_share: float = 0.1,
        test_share: float = 0.15,
    ) -> None:
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(f"val_share and test_share must be positive and sum to less than 1, got {val_share}, {test_share}")
        self._source = Path(source)
        manifest = self._source / "manifest.jsonl"
        if not manifest.is_file():
            raise FileNotFoundError(f"no NIH images in {source}: a folder with manifest.jsonl and images/ is expected there")
        content = manifest.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()[:16]
        self._seed = seed
        self._shares = (val_share, test_share)
        self.grammar = ReportGrammar(NIH_FINDINGS, wording=wording, max_findings=MAX_FINDINGS)
        rows = [_read_row(manifest, n, line) for n, line in enumerate(content.decode("utf-8").splitlines(), 1) if line]
        self._splits = self._split(rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The 14 labels, in the order in which a report names them."""
        return tuple(self.grammar.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Studies in each split."""
        return {split: len(rows) for split, rows in self._splits.items()}

    @property
    def options(self) -> dict[str, str | int | float]:
        """Everything that decides what the studies are."""
        return {
            "seed": self._seed,
            "wording": self.grammar.wording,
            "val_share": self._shares[0],
            "test_share": self._shares[1],
            "manifest": self._digest,
            "grammar": self.grammar.digest,
        }

    def studies(self, split: str) -> Iterator[Study]:
        """Make the studies of a split.

        Raises:
            ValueError: If an image is missing or cannot be decoded.
        """
        return (self._study(row) for row in self._splits[split])

    def _study(self, row: _Row) -> Study:
        observations, rng = drawn(row.image, row.labels, self._seed)
        path = self._source / "images" / row.image
        try:
            with Image.open(path) as image:
                image.load()
                picture = image.convert("L")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"image {path} cannot be read: {error}; repair it or take its line out of the manifest") from error
        return Study(
            key=Path(row.image).stem,
            images=(picture,),
            normalized=self.grammar.normalized(observations, rng),
            raw=self.grammar.raw(observations, rng),
            labels=tuple(o.name for o in observations),
            meta=row.meta,
        )

    def _split(self, rows: Sequence[_Row]) -> dict[str, list[_Row]]:
        """Deal the patients out at random until a split has its share of the images: no patient is in two splits."""
        images = Counter(row.patient for row in rows)
        patients = sorted(images)
        if len(patients) < 3:
            raise ValueError(f"{self._source} has images of {len(patients)} patients; three splits need at least three")
        shuffled = [patients[i] for i in np.random.default_rng(self._seed).permutation(len(patients))]
        owner: dict[str, str] = {}
        for split, share in zip(("val", "test"), self._shares, strict=True):
            taken = 0
            while taken < share * len(rows) and len(shuffled) > 1:
                patient = shuffled.pop()
                owner[patient] = split
                taken += images[patient]
        splits: dict[str, list[_Row]] = {"train": [], "val": [], "test": []}
        for row in rows:
            splits[owner.get(row.patient, "train")].append(row)
        return splits


def _read_row(manifest: Path, number: int, line: str) -> _Row:
    try:
        record = json.loads(line)
        row = _Row(
            image=str(record["image"]),
            labels=tuple(str(label) for label in record["labels"] if label != NO_FINDING),
            patient=str(record["patient"]),
            meta={name: str(record[name]) for name in ("view", "age", "sex", "patient") if name in record},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"line {number} of {manifest} is damaged: {error!r}") from error
    if unknown := [label for label in row.labels if label not in _TERMS]:
        raise ValueError(f"line {number} of {manifest} has label {unknown[0]!r}, known are {NO_FINDING!r} and {list(_TERMS)}")
    if Path(row.image).name != row.image:
        raise ValueError(f"line {number} of {manifest} names a file outside images/: {row.image!r}")
    return _Row(image=row.image, labels=tuple(label.lower() for label in row.labels), patient=row.patient, meta=row.meta)


def drawn(image: str, labels: Sequence[str], seed: int) -> tuple[list[Observation], np.random.Generator]:
    """Return the findings of an image that its report names, and the generator of its wordings: a function of image and seed.

    Args:
        image: file name.
        labels: in lower case, without "No Finding".
        seed: of the choice.
    """
    code = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, code])
    kept = rng.permutation(len(labels))[:MAX_FINDINGS]
    return [Observation(name=labels[i]) for i in sorted(kept)], rng


def nih_judge(version: Version = "normalized") -> GrammarJudge:
    """Return the judge of reports written from NIH labels; it is the same for every seed and wording."""
    return GrammarJudge(ReportGrammar(NIH_FINDINGS, max_findings=MAX_FINDINGS), version=version)
