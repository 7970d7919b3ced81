"""Trajectories on disk: collected once from a frozen teacher, read by stage 3 as often as it likes.

A folder of safetensors parts (numbers only, nothing that runs) and an ``index.json`` that says which teacher, which decoding and
which data they belong to, and which samples were dropped. Written to a temporary folder and renamed, so that a torn collection
is never read.

Shapes: R positions of one trajectory, T positions of a part, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from echo_pl.structs import Trajectory

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """What a collection belongs to; training refuses one that belongs to something else."""

    teacher_fingerprint: str
    data_fingerprint: str
    block_size: int
    confidence_threshold: float
    denoising_steps: int
    remasking: str
    distributions: bool
    entropy_bound: float = 0.5
    grid: str = "response"
    context_attention: str = "causal"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CollectionCounts:
    """What became of the studies that were decoded."""

    kept: int = 0
    dropped_loops: int = 0
    dropped_endless: int = 0
    """Never reached eos."""


class TrajectoryWriter:
    """Writes parts, then the index, then gives the folder its name."""

    def __init__(self, folder: str | Path, identity: StoreIdentity) -> None:
        """Begin in ``<folder>.part``.

        Raises:
            FileExistsError: ``folder`` holds something already.
        """
        self.folder = Path(folder)
        if self.folder.exists():
            raise FileExistsError(f"{self.folder} exists already; remove it, or collect into another folder")
        self._work = self.folder.with_name(self.folder.name + ".part")
        if self._work.exists():
            shutil.rmtree(self._work)  # left by a run that was cut off; its index was never written
        self._work.mkdir(parents=True)
        self.identity = identity
        self._parts: list[dict[str, object]] = []
        self._dropped: list[str] = []

    def drop(self, keys: Sequence[str]) -> None:
        """Note samples that were decoded and have no usable trajectory."""
        self._dropped.extend(keys)

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Write one part. Distributions are stored as float16."""
        if not trajectories:
            return
        tensors = {
            "lengths": torch.tensor([len(t.token_R) for t in trajectories]),
            "token": torch.cat([t.token_R for t in trajectories]).int(),
            "commit_step": torch.cat([t.commit_step_R for t in trajectories]).short(),
            "confidence": torch.cat([t.confidence_R for t in trajectories]).half(),
        }
        if self.identity.distributions:
            targets = [t.target_RV for t in trajectories if t.target_RV is not None]
            tensors["target"] = torch.cat(targets).half()
        name = f"part-{len(self._parts):05d}.safetensors"
        save_file(tensors, self._work / name)
        self._parts.append({"file": name, "keys": [t.key for t in trajectories]})

    def finish(self, counts: CollectionCounts) -> Path:
        """Write the index and rename the folder."""
        index = {
            "schema_version": SCHEMA_VERSION,
            "identity": asdict(self.identity),
            "counts": asdict(counts),
            "dropped": self._dropped,
            "parts": self._parts,
        }
        (self._work / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        self._work.rename(self.folder)
        return self.folder


class TrajectoryStore:
    """Reads a collection into memory, by sample key."""

    def __init__(self, folder: str | Path) -> None:
        """Read everything.

        Raises:
            FileNotFoundError: no collection at ``folder``.
            ValueError: another schema version, or a damaged part.
        """
        self.folder = Path(folder)
        index_path = self.folder / "index.json"
        if not index_path.is_file():
            raise FileNotFoundError(
                f"no trajectories in {self.folder}; collect them with `python -m echo_pl.tools.collect_trajectories`, "
                "or leave stage.module.trajectories unset to decode on the fly"
            )
        try:
            index = json.loads(index_path.read_text(encoding="utf-8"))
            version = index["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index_path} cannot be read: {error}; collect the trajectories anew") from error
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{index_path} has schema version {version}, this program reads {SCHEMA_VERSION}; collect the trajectories anew"
            )
        try:
            self.identity = StoreIdentity(**index["identity"])
            self.counts = CollectionCounts(**index["counts"])
            self._dropped = frozenset(index["dropped"])
            parts = [(part["file"], part["keys"]) for part in index["parts"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{index_path} is incomplete: {error}; collect the trajectories anew") from error
        self._by_key = {t.key: t for name, keys in parts for t in self._read(name, keys)}

    def _read(self, name: str, keys: Sequence[str]) -> Iterable[Trajectory]:
        try:
            tensors = load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.folder / name} cannot be read: {error}; collect the trajectories anew") from error
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
            )
            start = stop

    def __len__(self) -> int:
        return len(self._by_key)

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
        """Refuse a collection that belongs to another teacher, other data or another way of decoding.

        Raises:
            ValueError: naming the first difference and both values.
        """
        for field in fields(StoreIdentity):
            have, want = getattr(self.identity, field.name), getattr(wanted, field.name)
            if field.name == "distributions" and have and not want:
                continue
            if have != want:
                raise ValueError(
                    f"the trajectories in {self.folder} have {field.name} {have!r}, this run needs {want!r}; "
                    "collect them anew or point stage.module.trajectories elsewhere"
                )
