"""Offsets of members, against tarfile: on every kind of archive, also a cut and a damaged one."""

from __future__ import annotations

import io
import tarfile

import pytest

from echo_pl.data.store import tar_members
from echo_pl.data.store.tar_members import Member, members


def by_tarfile(content: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return [
            Member(info.name, info.offset_data, info.size, info.isreg() and info.type != tarfile.CONTTYPE and not info.issparse())
            for info in tar
        ]


def archive(*infos: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as tar:
        for place, info in enumerate(infos):
            content = b"x" * (600 * place) if info.isreg() else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def named(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


KINDS = {
    "usual": [named("a.0.png"), named("a.json"), named("b.0.png")],
    "nothing": [],
    "a_long_name": [named("a.json"), named(f"{'n' * 120}.json"), named("c.json")],
    "a_name_of_99": [named("a.json"), named("n" * 99), named("c.json")],
    "a_name_of_100": [named("a.json"), named("n" * 100), named("c.json")],
    "a_folder_in_the_prefix": [named("a.json"), named(f"{'d' * 90}/{'n' * 30}.json"), named("c.json")],
    "another_script": [named("a.json"), named("胸片.json"), named("c.json")],
    "a_link": [named("a.json"), named("b.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), named("c.json")],
    "a_folder": [named("a.json"), named("b.json", type=tarfile.DIRTYPE), named("c.json")],
    "a_time_in_parts_of_a_second": [named("a.json"), named("b.json", mtime=1.5), named("c.json")],
    "an_owner": [named("a.json", uname="somebody", uid=1000, mode=0o600), named("b.json", uid=2**31)],
    "old_kind": [named("a.json", type=tarfile.AREGTYPE), named("b.json")],
}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_tarfile_finds_them(kind, format):
    try:
        content = archive(*KINDS[kind], format=format)
    except (ValueError, UnicodeEncodeError):
        pytest.skip("this format has no such member")
    assert list(members(io.BytesIO(content))) == by_tarfile(content)


@pytest.mark.parametrize("at", [100, 124, 130, 148, 150, 155, 156, 257, 345, 400])
@pytest.mark.parametrize("member", [0, 1])
def test_a_damaged_header_is_what_tarfile_says(at, member):
    content = bytearray(archive(named("a.json"), named("b.json"), named("c.json")))
    content[512 * member + at] ^= 1
    try:
        expected = by_tarfile(bytes(content))
    except tarfile.ReadError as error:
        with pytest.raises(tarfile.ReadError, match=str(error)):
            list(members(io.BytesIO(content)))
    else:
        assert list(members(io.BytesIO(content))) == expected


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 513, 1024 + 100, 1024 + 600])
def test_a_cut_archive_has_no_more_than_tarfile_says(kept):
    content = archive(named("a.json"), named("b.json"), named("c.json"))[:kept]
    if kept < 512:
        with pytest.raises(tarfile.ReadError):
            list(members(io.BytesIO(content)))
        return
    found = list(members(io.BytesIO(content)))
    assert found == by_tarfile(archive(named("a.json"), named("b.json"), named("c.json")))[: len(found)]


def test_the_file_may_be_read_in_between():
    file = io.BytesIO(archive(named("a.json"), named("b.json"), named(f"{'n' * 120}.json"), named("c.json")))
    sizes = []
    for member in members(file):
        file.seek(member.offset)
        sizes.append(len(file.read(member.size)))
        file.seek(3)
    assert sizes == [0, 600, 1200, 1800]


def test_the_usual_ones_are_not_left_to_tarfile(monkeypatch):
    content = archive(named("a.0.png"), named("a.json"))
    monkeypatch.setattr(tar_members.tarfile, "open", lambda **_: pytest.fail("tarfile was asked") if file.tell() < 1536 else tar)
    file, tar = io.BytesIO(content), tarfile.TarFile(fileobj=io.BytesIO(bytes(1024)))
    assert [member.name for member in members(file)] == ["a.0.png", "a.json"]
