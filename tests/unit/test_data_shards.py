"""Shards: written once and completely, read back exactly; damaged and hostile ones are rejected."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from echo_pl.data.store import shard_writer
from echo_pl.data.store.corpus_index import CorpusIndex, Shard, check_local
from echo_pl.data.store.shard_reader import ShardError, decode_study, read_samples
from echo_pl.data.store.shard_writer import encode_study, write_corpus
from echo_pl.data.synthetic.synthetic import SyntheticCorpus

CORPUS = SyntheticCorpus(seed=9)


def write(folder: Path, count: int = 12, corpus: SyntheticCorpus = CORPUS) -> CorpusIndex:
    return write_corpus(
        folder,
        {"train": corpus.studies("train", count), "val": corpus.studies("val", 3)},
        counts={"train": count, "val": 3},
        corpus=corpus.name,
        options=corpus.options,
        labels=corpus.labels,
        shard_size=5,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "corpus"
    write(folder)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "corpus"))


def read(folder: Path, shard: Shard) -> list[str]:
    return [decode_study(raw).key for _, raw in read_samples(folder, shard, range(shard.samples))]


def test_what_was_written_is_read(made):
    index = CorpusIndex.load(made)
    assert [shard.samples for shard in index.shards("train")] == [5, 5, 2]
    assert (index.count("train"), index.count("val")) == (12, 3)
    read_back = [decode_study(raw) for shard in index.shards("train") for _, raw in read_samples(made, shard, range(shard.samples))]
    for study, original in zip(read_back, CORPUS.studies("train", 12), strict=True):
        assert replace(study, images=original.images) == original
        assert study.images[0].tobytes() == original.images[0].tobytes()


def test_only_the_wanted_samples_are_read(made):
    shard = CorpusIndex.load(made).shards("train")[0]
    assert [place for place, _ in read_samples(made, shard, [3, 1])] == [1, 3]


@pytest.mark.slow
def test_any_webdataset_reader_can_read_them(made):
    program = "import sys, webdataset as wds\nprint(*[s['__key__'] for s in wds.WebDataset(sys.argv[1], shardshuffle=False)])"
    environment = {name: value for name, value in os.environ.items() if name != "WDS_SECURE"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(made / "val-000000.tar")], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.split() == [f"val-{i:07d}" for i in range(3)], done.stderr


def test_the_same_corpus_is_found_and_has_the_same_bytes(made, tmp_path, caplog):
    caplog.set_level("INFO")
    before = (made / "train-000000.tar").stat().st_mtime_ns
    assert write(made) == CorpusIndex.load(made)
    assert (made / "train-000000.tar").stat().st_mtime_ns == before
    assert "found the synthetic corpus" in caplog.text
    assert write(tmp_path / "again").fingerprint == CorpusIndex.load(made).fingerprint


def test_another_corpus_is_rejected(made, copy):
    with pytest.raises(ValueError, match="already holds another corpus"):
        write(made, count=13)
    with pytest.raises(ValueError, match="already holds another corpus"):
        write(made, corpus=SyntheticCorpus(seed=10))
    (copy / "index.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards but no index\.json"):
        write(copy)


def test_an_interrupted_corpus_is_made_again(tmp_path):
    def broken():
        yield from CORPUS.studies("train", 7)
        raise KeyboardInterrupt

    arguments = {"counts": {"train": 9}, "corpus": "synthetic", "options": {}, "labels": CORPUS.labels}
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, {"train": broken()}, **arguments)
    assert not list(tmp_path.glob("*.tar"))
    with pytest.raises(FileNotFoundError, match=r"no index.json in .*corpus make synthetic --out"):
        CorpusIndex.load(tmp_path)
    assert write_corpus(tmp_path, {"train": CORPUS.studies("train", 9)}, **arguments).count("train") == 9
    assert not (tmp_path / ".partial").exists()


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match=r"0 MB free, the corpus needs about 0 MB"):
        write(tmp_path / "corpus")


def test_wrong_counts(tmp_path):
    with pytest.raises(ValueError, match="split train yielded 3 studies, 4 were announced"):
        write_corpus(tmp_path, {"train": CORPUS.studies("train", 3)}, counts={"train": 4}, corpus="x", options={}, labels=())


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def same_length_noise(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def emptied(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(b"\0" * size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "train-000000.tar is missing"),
        (cut_off, "train-000000.tar has 3000 bytes, its index says"),
        (same_length_noise, "train-000000.tar is damaged"),
        (emptied, "train-000000.tar (is damaged|holds 0 samples)"),
    ],
)
def test_damaged_shards(copy, damage, message):
    damage(copy / "train-000000.tar")
    with pytest.raises(ShardError, match=f"{message}.*make the corpus again"):
        read(copy, CorpusIndex.load(copy).shards("train")[0])


def tar_of(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Shard:
    path = folder / "made-000000.tar"
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return Shard(name=path.name, samples=1, bytes=path.stat().st_size, sha256="")


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def good_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    sample = encode_study(CORPUS.study("train", 0))
    return [(tarfile.TarInfo(f"k.{name}"), content) for name, content in sample.items() if name != "__key__"]


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "npy", "0.png.pyd", "py", "json.gz", "cls"])
def test_hostile_members_are_rejected_and_not_run(tmp_path, suffix):
    mark = tmp_path / "run"
    payload = (tarfile.TarInfo(f"k.{suffix}"), pickle.dumps(Payload(mark)))
    shard = tar_of(tmp_path, [*good_members(), payload])
    with pytest.raises(ShardError, match=rf"holds 'k\.{suffix}'; only plain files"):
        read(tmp_path, shard)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../k.json", "/etc/k.json", "a/k.json", "a\\k.json", "nodot"])
def test_paths_are_rejected(tmp_path, name):
    with pytest.raises(ShardError, match=f"holds {re.escape(repr(name.lstrip('/')))}|holds {re.escape(repr(name))}"):
        read(tmp_path, tar_of(tmp_path, [(tarfile.TarInfo(name), b"{}")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_rejected(tmp_path, kind):
    info = tarfile.TarInfo("k.json")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ShardError, match=r"holds 'k\.json'; only plain files"):
        read(tmp_path, tar_of(tmp_path, [(info, b"")]))


def test_sparse_members_are_rejected(tmp_path):
    """A member of the pax kind that declares a hundred megabytes of holes, and is a plain file but for that."""
    info = tarfile.TarInfo("k.json")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": "100000000", "GNU.sparse.map": "0,0"}
    path = tmp_path / "made-000000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO())
    shard = Shard(name=path.name, samples=1, bytes=path.stat().st_size, sha256="")
    with pytest.raises(ShardError, match=r"holds 'k\.json'; only plain files"):
        read(tmp_path, shard)


def forged(folder: Path, field: slice, content: bytes) -> Shard:
    """A shard whose second member's header says something else, with a checksum that fits."""
    shard = tar_of(folder, [(tarfile.TarInfo("k.json"), b"{}"), (tarfile.TarInfo("k.0.png"), b"p" * 700)])
    path = folder / shard.name
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[field] = content
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[1024:1536] = header
    path.write_bytes(data)
    return shard


SIZE = slice(124, 136)


@pytest.mark.parametrize(
    ("size", "message"),
    [(b"77777777777\0", 8**11 - 1), (b"\x80" + (2**60).to_bytes(11, "big"), 2**60)],
    ids=["largest_octal", "base_256"],
)
def test_huge_declared_sizes_are_rejected_before_anything_is_read(tmp_path, size, message):
    with pytest.raises(ShardError, match=rf"holds 'k\.0\.png' of {message} bytes, more than"):
        read(tmp_path, forged(tmp_path, SIZE, size))


def test_a_negative_size_ends_the_reading(tmp_path):
    """A tar reader that believes it goes backwards and reads the same member for ever."""
    with pytest.raises(ShardError, match=r"made-000000\.tar (holds 'k\.0\.png' of -1024 bytes|is damaged)"):
        read(tmp_path, forged(tmp_path, SIZE, b"\xff" + (-1024).to_bytes(11, "big", signed=True)))


def test_a_size_beyond_the_end_is_damage(tmp_path):
    with pytest.raises(ShardError, match=r"made-000000\.tar is damaged \(unexpected end of data\)"):
        read(tmp_path, forged(tmp_path, SIZE, b"00000200000\0"))


@pytest.mark.parametrize("kept", [1536 + 300, 1536, 1024 + 200, 512 + 10])
def test_a_truncated_tar_of_the_size_that_its_index_says_is_named(tmp_path, kept):
    members = [(tarfile.TarInfo("k.json"), b"{}"), (tarfile.TarInfo("k.0.png"), b"p" * 700)]
    whole = tar_of(tmp_path, members)
    path = tmp_path / whole.name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"made-000000\.tar"):
        read(tmp_path, replace(whole, bytes=kept))


@pytest.mark.parametrize("kind", [tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"9"])
def test_members_of_other_kinds_are_rejected(tmp_path, kind):
    with pytest.raises(ShardError, match=r"holds 'k\.0\.png'.* only plain files|is damaged"):
        read(tmp_path, forged(tmp_path, slice(156, 157), kind))


@pytest.mark.parametrize("name", ["pipe:touch x.json", "k.json\n", "..json", ".json", "k.tar.json", "k.1.json", "\u202ek.json"])
def test_members_of_a_wrong_name_are_rejected(tmp_path, name):
    members = [*good_members(), (tarfile.TarInfo(name), b"{}")]
    with pytest.raises(ValueError, match=r"only plain files|must be made of letters|its index says 1"):
        read(tmp_path, tar_of(tmp_path, members))


def test_json_of_a_great_depth_is_a_bad_sample(tmp_path):
    members = {info.name: (info, data) for info, data in good_members()}
    members["k.json"] = (tarfile.TarInfo("k.json"), b"[" * 200_000)
    with pytest.raises(ValueError, match=r"sample k of shard made-000000\.tar"):
        read(tmp_path, tar_of(tmp_path, list(members.values())))


def test_a_member_twice_is_rejected(tmp_path):
    members = good_members()
    with pytest.raises(ShardError, match="twice"):
        read(tmp_path, tar_of(tmp_path, [*members, (tarfile.TarInfo("k.json"), b"{}")]))


@pytest.mark.parametrize("location", ["pipe:touch /tmp/x; cat a.tar", "http://a/b", "s3://a/b", "file:a", "gs://x"])
def test_urls_are_rejected(location, made):
    with pytest.raises(ValueError, match="never from a URL or a command"):
        check_local(location)
    with pytest.raises(ValueError, match="never from a URL or a command"):
        CorpusIndex.load(location)
    with pytest.raises(ValueError, match="never from a URL or a command"):
        list(read_samples(location, CorpusIndex.load(made).shards("val")[0], [0]))


@pytest.mark.parametrize("name", ["pipe:touch x.tar", "../a.tar", "/a.tar", "a.zip"])
def test_an_index_names_plain_files_only(copy, name):
    record = json.loads((copy / "index.json").read_text())
    record["splits"]["train"][0]["name"] = name
    (copy / "index.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="a shard must be a plain"):
        CorpusIndex.load(copy)


def test_webdataset_itself_is_in_its_secure_mode(tmp_path):
    assert webdataset.utils.enforce_security
    with pytest.raises(ValueError, match="cannot open pipe"):
        list(webdataset.WebDataset(f"pipe:touch {tmp_path}/run", shardshuffle=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99, this program reads 1"),
        ({"splits": None}, "index.json is damaged"),
        ({"splits": {"train": [{"name": "a.tar", "samples": 0, "bytes": 0, "sha256": ""}]}}, "a.tar is empty"),
    ],
)
def test_bad_index(copy, change, message):
    record = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(ValueError, match=message):
        CorpusIndex.load(copy)


def test_an_index_that_is_no_json(copy):
    (copy / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        CorpusIndex.load(copy)


def test_unknown_split(made):
    with pytest.raises(ValueError, match="no split 'dev', only"):
        CorpusIndex.load(made).shards("dev")


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("0.png", b"no image", "sample k of shard .*image 0.png"),
        ("0.png", None, "has no image"),
        ("json", b"{", "cannot be decoded"),
        ("json", b"[]", "lacks a field or has a wrong one"),
        ("json", b'{"schema_version": 2}', "schema version 2, this program reads 1"),
        ("json", b'{"schema_version": 1, "raw": null, "findings": 1, "impression": ""}', "must be text"),
        ("json", None, "lacks a field"),
    ],
)
def test_bad_samples_are_named(tmp_path, field, content, message):
    members = {info.name: (info, data) for info, data in good_members()}
    if content is None:
        del members[f"k.{field}"]
    else:
        members[f"k.{field}"] = (tarfile.TarInfo(f"k.{field}"), content)
    shard = tar_of(tmp_path, list(members.values()))
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, shard)
    assert "sample k of shard made-000000.tar" in str(caught.value)
