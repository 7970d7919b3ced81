"""Reads studies back from WebDataset shards. Shards come from outside: they are data, never code.

Members are selected by name, only images and JSON are accepted, and only the decoders here read them. Samples of another
rank or worker are skipped unread.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from echo_pl.data.store.corpus_index import SCHEMA_VERSION, Shard, check_local
from echo_pl.data.store.study import StoredImages, Study
from echo_pl.data.store.tar_members import Member, members
from echo_pl.structs import ReportText

IMAGE_SUFFIXES = ("png", "jpg", "jpeg")
STUDY_SUFFIXES = ("json", *IMAGE_SUFFIXES)
MAX_MEMBER_BYTES = 256 * 2**20
MAX_IMAGE_PIXELS = 100_000_000


class ShardError(ValueError):
    """A shard as a whole cannot be read or must not be."""


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One undecoded sample of a shard."""

    key: str
    shard: str
    fields: Mapping[str, bytes]
    """Suffix (``0.png``, ``json``) to content."""


def read_samples(
    folder: Path | str,
    shard: Shard,
    wanted: Collection[int],
    *,
    suffixes: Collection[str] = STUDY_SUFFIXES,
    passed_over: Collection[str] = (),
) -> Iterator[tuple[int, RawSample]]:
    """Yield the wanted samples of one shard in their order, undecoded.

    Args:
        folder: The corpus folder.
        shard: As its index describes it.
        wanted: Places in the shard, from 0.
        suffixes: What the shard may hold, by the last part of its members' names.
        passed_over: Of these the content is not read.

    Raises:
        ShardError: If the shard is missing, damaged, not as in its index, or holds anything but files of these suffixes.
    """
    path = check_local(folder) / shard.name
    if not path.is_file():
        raise ShardError(f"shard {path} is missing; copy it there, or make the corpus again")
    if path.stat().st_size != shard.bytes:
        raise ShardError(
            f"shard {path} has {path.stat().st_size} bytes, its index says {shard.bytes}: it was cut off or changed; "
            "copy it again, or make the corpus again"
        )
    chosen = frozenset(wanted)
    place, key = -1, ""
    fields: dict[str, bytes] = {}
    found: set[str] = set()
    try:
        with path.open("rb") as file:
            for member in members(file):
                stem, suffix = _checked_name(path, member, suffixes)
                if stem != key:
                    if place in chosen:
                        yield place, RawSample(key=key, shard=shard.name, fields=fields)
                    place, key, fields, found = place + 1, stem, {}, set()
                if suffix in found:
                    raise ShardError(f"shard {path} holds {member.name!r} twice; make the corpus again")
                found.add(suffix)
                if place in chosen and suffix.rsplit(".", 1)[-1] not in passed_over:
                    fields[suffix] = _content(file, member)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"shard {path} is damaged ({error}); copy it again, or make the corpus again") from error
    if place in chosen:
        yield place, RawSample(key=key, shard=shard.name, fields=fields)
    if place + 1 != shard.samples:
        raise ShardError(f"shard {path} holds {place + 1} samples, its index says {shard.samples}; make the corpus again")


def _content(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _checked_name(path: Path, member: Member, suffixes: Collection[str]) -> tuple[str, str]:
    """Stem and suffix, parted at the first dot; a study has several images, ``0.png``, and one of everything else."""
    stem, _, whole = member.name.partition(".")
    whole = whole.lower()
    suffix = whole.rsplit(".", 1)[-1]
    allowed = suffix in suffixes and (whole == suffix or suffix in IMAGE_SUFFIXES)
    if not (member.plain and stem and allowed) or "/" in member.name or "\\" in member.name:
        raise ShardError(
            f"shard {path} holds {member.name!r}; only plain files named *.{', *.'.join(suffixes)} are "
            "accepted, as a shard must hold nothing but images and text. Do not use it unless you know who made it"
        )
    if not 0 <= member.size <= MAX_MEMBER_BYTES:  # before the next is looked for: a negative size would lead backwards
        raise ShardError(
            f"shard {path} holds {member.name!r} of {member.size} bytes, more than {MAX_MEMBER_BYTES} or less than none"
        )
    return stem, whole


def decode_study(sample: RawSample, stored: StoredImages | None = None) -> Study:
    """Decode one sample.

    Args:
        sample: Undecoded sample of a shard.
        stored: In the place of its images, which were passed over.

    Raises:
        ValueError: If its JSON or one of its images cannot be decoded; the message names sample and shard.
    """
    where = f"sample {sample.key} of shard {sample.shard}"
    try:
        record = json.loads(sample.fields["json"])
        version = record["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version!r}, this program reads {SCHEMA_VERSION}")
        raw = record["raw"]
        return Study(
            key=sample.key,
            images=_decode_images(sample),
            normalized=_report(record),
            raw=None if raw is None else _report(raw),
            labels=tuple(str(label) for label in record["labels"]),
            meta={str(name): str(value) for name, value in record["meta"].items()},
            stored=stored,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} lacks a field or has a wrong one: {error!r}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be decoded: {error}") from error


def _report(record: Mapping[str, Any]) -> ReportText:
    findings, impression = record["findings"], record["impression"]
    if not isinstance(findings, str) or not isinstance(impression, str):
        raise TypeError("findings and impression must be text")
    return ReportText(findings=findings, impression=impression)


def _decode_images(sample: RawSample) -> tuple[Image.Image, ...]:
    names = sorted((name for name in sample.fields if name != "json"), key=_image_place)
    return tuple(_decode_image(name, sample.fields[name]) for name in names)


def _image_place(name: str) -> int:
    head = name.split(".", 1)[0]
    return int(head) if head.isdecimal() else 0


def _decode_image(name: str, content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_IMAGE_PIXELS}")
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name}: {error}") from error
    return image
