"""Trajectories on disk: collected once from a frozen teacher, read by stage 3.

A folder of safetensors parts (numbers only, no code) and an ``index.json`` with their teacher, decode and data,
and the dropped samples. :mod:`echo_pl.sampling.trajectory_writer` writes it.

Shapes: R positions of one trajectory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from echo_pl.structs import TopTargets, Trajectory

SCHEMA_VERSION = 3
INDEX_NAME = "index.json"


@dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """Teacher, decode and data of a collection; training rejects a collection of another identity."""

    teacher_fingerprint: str
    data_fingerprint: str
    block_size: int
    confidence_threshold: float
    denoising_steps: int
    remasking: str
    distributions: bool
    kept_tokens: int = 0
    """Likeliest tokens stored of each distribution, with the probability of all others as one; 0: all tokens."""
    entropy_bound: float = 0.5
    grid: str = "response"
    context_attention: str = "causal"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    gate: float = 0.0
    tilt: float = 0.0
    """Weight of the student that the teacher was tilted towards; 0: none."""
    tilt_student: str = ""
    """Fingerprint of its weights."""


@dataclass(frozen=True, kw_only=True)
class CollectionCounts:
    """Numbers of kept and dropped studies."""

    kept: int = 0
    dropped_loops: int = 0
    dropped_endless: int = 0
    """Never reached eos."""

    def __add__(self, other: CollectionCounts) -> CollectionCounts:
        return CollectionCounts(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class CollectionPlan:
    """Division of a collection into parts. The same plan gives the same parts, from any number of processes."""

    studies: int
    batches: int
    batch_size: int
    """Studies decoded at once. The last bits of a batch's values depend on it."""
    batches_per_part: int = 1

    def __post_init__(self) -> None:
        if self.batches_per_part < 1:
            raise ValueError(f"batches_per_part must be positive, got {self.batches_per_part}")

    @property
    def parts(self) -> int:
        """Number of files."""
        return -(-self.batches // self.batches_per_part)

    def batches_of(self, part: int) -> range:
        """Numbers of the batches of a part."""
        start = part * self.batches_per_part
        return range(start, min(start + self.batches_per_part, self.batches))


class TrajectoryStore:
    """Reads a collection into memory, by sample key."""

    def __init__(self, folder: str | Path) -> None:
        """Read all parts.

        Raises:
            FileNotFoundError: no collection at ``folder``.
            ValueError: another schema version, or a damaged part.
        """
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.identity, self.counts, self._dropped, parts = index.identity, index.counts, index.dropped, index.parts
        self._by_key = {t.key: t for name, keys in parts for t in self._read(name, keys)}

    def _read(self, name: str, keys: Sequence[str]) -> Iterable[Trajectory]:
        try:
            tensors = load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.folder / name, error) from error
        start = 0
        for key, length in zip(keys, tensors["lengths"].tolist(), strict=True):
            stop = start + length
            target = tensors.get("target")
            yield Trajectory(
                key=key,
                block_size=self.identity.block_size,
                token_R=tensors["token"][start:stop].long(),
                commit_step_R=tensors["commit_step"][start:stop].long(),
                confidence_R=tensors["confidence"][start:stop].float(),
                target_RV=None if target is None else target[start:stop],
                top=_top(tensors, slice(start, stop)) if "top_token" in tensors else None,
            )
            start = stop

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the samples that have a trajectory."""
        return tuple(self._by_key)

    def get(self, key: str) -> Trajectory | None:
        """The trajectory of a sample; None if it was decoded and dropped.

        Raises:
            ValueError: the sample was never decoded.
        """
        trajectory = self._by_key.get(key)
        if trajectory is None and key not in self._dropped:
            raise ValueError(
                f"no trajectory of sample {key!r} was ever collected in {self.folder} ({len(self._by_key) + len(self._dropped)} "
                "studies were decoded); train on those with stage.limit_train=<the --studies of the collection>, or collect more"
            )
        return trajectory

    def check(self, wanted: StoreIdentity) -> None:
        """Raise ValueError with both values for a collection of another teacher, other data or another decode."""
        for field in fields(StoreIdentity):
            have, want = getattr(self.identity, field.name), getattr(wanted, field.name)
            # Objectives train from whole distributions or from their top, and with any student that the teacher was tilted to.
            if (field.name == "distributions" and have and not want) or field.name in ("kept_tokens", "tilt_student"):
                continue
            if have != want:
                raise ValueError(
                    f"the trajectories in {self.folder} have {field.name} {have!r}, this run needs {want!r}; "
                    "collect them again or point stage.module.trajectories elsewhere"
                )


@dataclass(frozen=True, kw_only=True)
class _Index:
    identity: StoreIdentity
    counts: CollectionCounts
    dropped: frozenset[str]
    parts: list[tuple[str, list[str]]]
    """File name and sample keys."""


def _read_index(folder: Path) -> _Index:
    path = folder / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no trajectories in {folder}; collect them with `echo-pl trajectories collect`, "
            "or leave stage.module.trajectories unset to decode on the fly"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; collect the trajectories again"
        )
    try:
        return _Index(
            identity=StoreIdentity(**index["identity"]),
            counts=CollectionCounts(**index["counts"]),
            dropped=frozenset(index["dropped"]),
            parts=[(part["file"], part["keys"]) for part in index["parts"]],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is incomplete: {error}; collect the trajectories again") from error


def stored_tokens(folder: str | Path) -> tuple[StoreIdentity, list[Tensor]]:
    """Identity of a collection, and the tokens (R,) of its reports, in whole blocks; distributions are not read.

    Raises:
        FileNotFoundError: no collection at ``folder``.
        ValueError: another schema version, or a damaged part.
    """
    index = _read_index(Path(folder))
    reports: list[Tensor] = []
    for name, _ in index.parts:
        path = Path(folder) / name
        try:
            with safe_open(path, "pt") as file:
                reports += file.get_tensor("token").long().split(file.get_tensor("lengths").tolist())
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error
    return index.identity, reports


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read: {error}; collect the trajectories again")


def _top(tensors: dict[str, Tensor], place: slice) -> TopTargets:
    return TopTargets(
        token_MK=tensors["top_token"][place].long(),
        probability_MK=tensors["top_probability"][place],
        tail_M=tensors["tail"][place],
    )
