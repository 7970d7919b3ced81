"""Positions of the members of a tar archive. Nothing is extracted.

A header as a shard's writer makes it, of a plain file with a short ASCII name, is read here, as tarfile takes several times as long
for each: so long that it counts beside the decoding of an image. From the first header of another kind on, tarfile reads the rest.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 512
_REGULAR = tarfile.REGTYPE[0]


class Member(NamedTuple):
    """One member of an archive."""

    name: str
    offset: int
    """Offset of its content in the archive."""
    size: int
    """Bytes; of a hostile archive, any number."""
    plain: bool = True
    """True for an ordinary file, stored as it is; False for a link, folder, device or sparse file."""


def members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members of an archive in their order; between two of them the file may be read anywhere.

    Raises:
        tarfile.TarError: If it is not an archive, or tarfile finds it damaged.
        OSError: If it cannot be read.
    """
    offset = 0
    file.seek(0)
    while (member := _usual(file.read(_BLOCK), offset + _BLOCK)) is not None:
        yield member
        offset = member.offset + -(-member.size // _BLOCK) * _BLOCK
        file.seek(offset)
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            # a sparse member is regular to tarfile, and many times as large as what the archive holds of it
            plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
            yield Member(info.name, info.offset_data, info.size, plain)


def _usual(header: bytes, content: int) -> Member | None:
    """The member whose header this is; None: tarfile has to look at it."""
    if len(header) != _BLOCK or header[156] != _REGULAR or header[345]:  # type; prefix, which makes a long name
        return None
    name, size, checksum = header[: header.find(0, 0, 100)], header[124:135], header[148:154]
    usual = name.isascii() and size.isdigit() and checksum.isdigit() and not header[135] and 0 < len(name) < 100
    try:
        if not usual or int(checksum, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        return Member(name.decode("ascii"), content, int(size, 8))
    except ValueError:  # a digit that is not octal
        return None
