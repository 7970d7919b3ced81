"""One corpus, or several as if they were one: shards in a row, keys that stay unique, labels joined by name."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from echo_pl.data.store.corpus import Corpus, CorpusShard
from echo_pl.data.store.corpus_folder import open_folder
from echo_pl.data.store.corpus_index import Shard, check_local
from echo_pl.data.store.shard_reader import decode_study
from echo_pl.data.store.study import Version
from echo_pl.data.synthetic import make_judge
from echo_pl.reports.report import ReportJudge

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_]+")
Property = TypeVar("Property")


@dataclass(frozen=True, kw_only=True)
class CorpusShare:
    """A corpus of a mixture."""

    root: str | Path
    """Its folder or URL."""
    weight: float | None = None
    """Its share of the visits, up to a factor that all have in common; None, for all or none: its number of studies."""
    stored_features: str | Path | None = None
    """Folder of its stored vision features; for all or none."""

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of a corpus must be more than 0, got {self.weight} for {self.root}")


class CorpusSet:
    """The corpora of a run.

    Args:
        corpora: At least one.
        weights: Of a mixture; an empty tuple: by number of studies. None: this is one corpus by itself.
    """

    def __init__(self, corpora: tuple[Corpus, ...], weights: tuple[float, ...] | None) -> None:
        self.corpora = corpora
        self._weights = weights

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Finding labels of all corpora, each once, in the order in which they come."""
        joined = tuple(dict.fromkeys(label for corpus in self.corpora for label in corpus.index.labels))
        for corpus in self.corpora:
            if unknown := [label for label in joined if label not in corpus.index.labels]:
                logger.warning(
                    "corpus %s does not name %d of the mixture's %d labels (%s, ...): its studies count as without them",
                    corpus, len(unknown), len(joined), unknown[0],
                )  # fmt: skip
        return joined

    @property
    def fingerprint(self) -> str:
        """Hash of every byte of every corpus, of their names and of the mixture."""
        if self._weights is None:
            return self.corpora[0].index.fingerprint
        parts = [f"{corpus.name}/{corpus.index.fingerprint}" for corpus in self.corpora]
        return hashlib.sha256("\n".join([*parts, str(self._weights)]).encode()).hexdigest()[:16]

    @property
    def vision_fingerprint(self) -> str | None:
        """Fingerprint of the vision tower whose stored output is read; None if images are read.

        Raises:
            ValueError: If two corpora have it of different towers, naming both.
        """
        return self.common(
            "vision tower", lambda corpus: None if corpus.features is None else corpus.features.index.vision_fingerprint
        )

    @property
    def stored_precision(self) -> str | None:
        """Precision in which that tower computed.

        Raises:
            ValueError: If two corpora have different ones, naming both.
        """
        return self.common(
            "precision of the vision tower", lambda corpus: None if corpus.features is None else corpus.features.index.precision
        )

    def common(
        self, what: str, of: Callable[[Corpus], Property], remedy: str = "store the features of both in the same way"
    ) -> Property:
        """Return a property that all corpora share.

        Args:
            what: Its name, for messages.
            of: Asks a corpus for it.
            remedy: What to do where they differ.

        Raises:
            ValueError: If two corpora differ, naming both.
        """
        first, *others = self.corpora
        value = of(first)
        for other in others:
            if (found := of(other)) != value:
                raise ValueError(f"the corpora {first} and {other} differ in their {what}, {value} and {found}: {remedy}")
        return value

    def shards(self, split: str) -> tuple[CorpusShard, ...]:
        """The shards of a split, corpus by corpus.

        Raises:
            ValueError: If no corpus has such a split.
        """
        found = tuple(shard for corpus in self.corpora for shard in corpus.shards(split))
        if not found:
            known = sorted({name for corpus in self.corpora for name in corpus.index.splits})
            raise ValueError(f"{' and '.join(map(str, self.corpora))}: no split {split!r}, only {known}")
        return found

    def training_shards(self) -> tuple[tuple[Shard, ...], ...]:
        """The shards of the training split of each corpus.

        Raises:
            ValueError: If a corpus has none.
        """
        return tuple(corpus.index.shards("train") for corpus in self.corpora)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weights of a mixture; None for a single corpus."""
        if self._weights == ():
            return tuple(float(corpus.index.count("train")) for corpus in self.corpora)
        return self._weights

    def judge(self, version: Version) -> ReportJudge | None:
        """Return the judge of the reports of all corpora, or None."""
        kinds = {corpus.index.corpus for corpus in self.corpora}
        return make_judge(kinds.pop(), version) if len(kinds) == 1 else None

    def images(self, split: str, keys: Iterable[str]) -> dict[str, Image.Image]:
        """Return the first image of each of these studies, at its original size.

        Raises:
            ValueError: If the split has no such study.
        """
        wanted = set(keys)
        found: dict[str, Image.Image] = {}
        for shard in self.shards(split):
            if len(found) == len(wanted):
                break
            for sample in shard.studies():
                if sample.key in wanted:
                    found[sample.key] = decode_study(sample).images[0]
        if missing := sorted(wanted - found.keys()):
            raise ValueError(f"no study {missing[0]!r} in the {split} split of {self.corpora[0]} ({len(missing)} missing in all)")
        return found


def open_corpora(
    root: str | Path | None,
    corpora: Mapping[str, Mapping[str, Any]] | None,
    *,
    stored_features: str | Path | None,
    processing: Mapping[str, Any],
    cache_dir: str | Path | None,
    cache_bytes: int,
) -> CorpusSet:
    """The corpora that a configuration names; nothing is read yet.

    Args:
        root: Folder or URL of the only one; None with ``corpora``.
        corpora: Name to the fields of :class:`CorpusShare`; None with ``root``.
        stored_features: Of the only one.
        processing: How images become patches.
        cache_dir: Folder for downloaded files.
        cache_bytes: Most bytes there.

    Raises:
        ValueError: If this makes no corpus or mixture.
    """

    def opened(name: str, share: CorpusShare) -> Corpus:
        features = None if share.stored_features is None else check_local(share.stored_features)
        return Corpus(open_folder(share.root, cache_dir, cache_bytes), name=name, features=features, processing=processing)

    if (root is None) == (corpora is None):
        raise ValueError(f"give root, for one corpus, or corpora, for a mixture, and not both; got {root!r} and {corpora!r}")
    if corpora is None:
        assert root is not None
        return CorpusSet((opened("", CorpusShare(root=root, stored_features=stored_features)),), None)
    if stored_features is not None:
        raise ValueError("in a mixture stored_features are given for each of the corpora, not for all")
    shares = {name: _share(name, fields) for name, fields in corpora.items()}
    given = [float(share.weight) for share in shares.values() if share.weight is not None]
    if not shares or len(given) not in (0, len(shares)):
        raise ValueError(f"give all corpora of a mixture a weight, or none; got {len(given)} weights for {sorted(shares)}")
    return CorpusSet(tuple(opened(name, share) for name, share in shares.items()), tuple(given))


def _share(name: str, fields: Mapping[str, Any]) -> CorpusShare:
    if not _NAME.fullmatch(name):  # without a '-', which ends it in a key
        raise ValueError(f"the name of a corpus is made of letters, digits and '_', got {name!r}")
    try:
        return CorpusShare(**fields)
    except TypeError as error:
        raise ValueError(
            f"corpora.{name}: {str(error).removeprefix('CorpusShare.__init__() ')}; there are root, weight, stored_features"
        ) from error
