"""Writing trajectories to disk part by part, by one process or several, with the same bytes after an interruption.

Parts are written to ``<folder>.part``, beside a ``plan.json`` with the identity and the division of the collection. A part depends
only on the plan, its number and the teacher. It is written under a temporary name and renamed, so every part is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from echo_pl.io.atomic import PARTIAL, atomic_path, write_text_atomic
from echo_pl.sampling.trajectory_store import INDEX_NAME, SCHEMA_VERSION, CollectionCounts, CollectionPlan, StoreIdentity
from echo_pl.structs import Trajectory

_PLAN = "plan.json"
_RECORD = "record"
"""The only key of a part's metadata: the order of several keys would change from write to write."""


class TrajectoryWriter:
    """Writes parts, then the index, then renames the folder; continues an interrupted collection."""

    def __init__(self, folder: str | Path, identity: StoreIdentity, plan: CollectionPlan) -> None:
        """Start or continue in ``<folder>.part``.

        Raises:
            FileExistsError: ``folder`` exists.
            ValueError: ``<folder>.part`` is another unfinished collection, or something else.
        """
        self.folder, self.identity, self.plan = Path(folder), identity, plan
        check_absent(self.folder)
        self._work = _work_of(self.folder)
        wanted = {"schema_version": SCHEMA_VERSION, "identity": asdict(identity), "plan": asdict(plan)}
        if _is_begun(self._work):
            self._check_same(wanted)
        else:
            self._work.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self._work / _PLAN, json.dumps(wanted, indent=1))

    def _check_same(self, wanted: dict[str, object]) -> None:
        saved = _plan_of(self._work)
        for name, value in _flat(wanted).items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{self._work} is an unfinished collection of {name} {saved.get(name)!r}, this one is of {value!r}; "
                    f"{_way_out(self._work)}"
                )

    def missing(self) -> list[int]:
        """Numbers of the parts that are not written yet."""
        return [part for part in range(self.plan.parts) if not (self._work / _name(part)).is_file()]

    def write(self, part: int, trajectories: Sequence[Trajectory], dropped: Sequence[str], counts: CollectionCounts) -> None:
        """Write one part.

        Args:
            part: its number.
            trajectories: usable trajectories.
            dropped: keys of the samples that were decoded and have no usable trajectory.
            counts: numbers of both.
        """
        record = {"keys": [t.key for t in trajectories], "dropped": list(dropped), "counts": asdict(counts)}
        with atomic_path(self._work / _name(part)) as partial:
            save_file(_tensors(trajectories, self.identity), partial, metadata={_RECORD: json.dumps(record)})

    def finish(self) -> tuple[Path, CollectionCounts]:
        """Write the index, once all parts are written, and rename the folder.

        Returns:
            The folder, and the counts of all parts together.

        Raises:
            ValueError: a part is missing or damaged.
        """
        if missing := self.missing():
            raise ValueError(f"{len(missing)} of {self.plan.parts} parts are not in {self._work} yet, the first is {missing[0]}")
        records = [self._record(part) for part in range(self.plan.parts)]
        counts = sum((CollectionCounts(**record["counts"]) for record in records), CollectionCounts())
        index = {
            "schema_version": SCHEMA_VERSION,
            "identity": asdict(self.identity),
            "plan": asdict(self.plan),
            "counts": asdict(counts),
            "dropped": [key for record in records for key in record["dropped"]],
            "parts": [{"file": _name(part), "keys": record["keys"]} for part, record in enumerate(records)],
        }
        write_text_atomic(self._work / INDEX_NAME, json.dumps(index, indent=1))
        self._work.rename(self.folder)
        (self.folder / _PLAN).unlink()
        return self.folder, counts

    def _record(self, part: int) -> dict[str, Any]:
        path = self._work / _name(part)
        try:
            with safe_open(path, "pt") as file:
                record: dict[str, Any] = json.loads(file.metadata()[_RECORD])
                return record
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); remove it and start the collection again, which writes it again"
            ) from error


def check_absent(folder: Path) -> None:
    """Raise FileExistsError if the folder exists."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it, or collect into another folder")


def _work_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".part")


def _is_begun(work: Path) -> bool:
    return work.exists() and any(path.suffix != PARTIAL for path in work.iterdir())


def _plan_of(work: Path) -> dict[str, object]:
    """Identity and plan of an unfinished collection."""
    try:
        return _flat(json.loads((work / _PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{work} is not an unfinished collection that can be continued ({error}); {_way_out(work)}") from error


def _way_out(work: Path) -> str:
    return f"remove {work}, or collect into another folder"


def _name(part: int) -> str:
    return f"part-{part:05d}.safetensors"


def _tensors(trajectories: Sequence[Trajectory], identity: StoreIdentity) -> dict[str, Tensor]:
    """Tensors of a part: whole distributions as float16, top tokens, which are few, as float32."""

    def joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.empty(0, *parts[0].shape[1:]), *parts]).to(dtype) if parts else torch.empty(0, dtype=dtype)

    tensors = {
        "lengths": torch.tensor([len(t.token_R) for t in trajectories], dtype=torch.long),
        "token": joined([t.token_R for t in trajectories], torch.int32),
        "commit_step": joined([t.commit_step_R for t in trajectories], torch.int16),
        "confidence": joined([t.confidence_R for t in trajectories], torch.float16),
    }
    if not identity.distributions:
        return tensors
    if not identity.kept_tokens:
        return tensors | {"target": joined([t.target_RV for t in trajectories if t.target_RV is not None], torch.float16)}
    tops = [t.top for t in trajectories if t.top is not None]
    return tensors | {
        "top_token": joined([top.token_MK for top in tops], torch.int32),
        "top_probability": joined([top.probability_MK for top in tops], torch.float32),
        "tail": joined([top.tail_M for top in tops], torch.float32),
    }


def _flat(record: dict[str, object]) -> dict[str, object]:
    """Flatten nested groups."""
    return {
        name: inner
        for key, value in record.items()
        for name, inner in (value.items() if isinstance(value, dict) else [(key, value)])
    }
