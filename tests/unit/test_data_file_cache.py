"""The cache: bounded, least recently used first, never what is held; shared by processes; nothing half is believed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from echo_pl.data.store.file_cache import CacheFullError, ChecksumError, FileCache

SIZE = 1000


@dataclass(frozen=True)
class File:
    """A file of one letter, many times."""

    letter: str
    times: int = SIZE

    @property
    def name(self) -> str:
        return f"{self.letter}.tar"

    @property
    def content(self) -> bytes:
        return self.letter.encode() * self.times

    @property
    def bytes(self) -> int:
        return self.times

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Source:
    """Counts how often it was asked."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.times = 0

    def __call__(self, target: Path) -> None:
        self.times += 1
        target.write_bytes(self.file.content)


def read(cache: FileCache, file: File) -> int:
    """Read a file through the cache; how often it had to be fetched."""
    source = Source(file)
    with cache.holding(file, source) as folder:
        assert (folder / file.name).read_bytes() == file.content
    return source.times


def letters(cache: FileCache) -> str:
    return "".join(sorted(path.stem for path in cache.folder.glob("*/*.tar")))


def used(cache: FileCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("*/*"))


@pytest.fixture
def cache(tmp_path) -> FileCache:
    return FileCache(tmp_path / "cache", 3 * SIZE)


def test_fetched_once(cache):
    assert [read(cache, File("a")) for _ in range(3)] == [1, 0, 0]
    assert [read(FileCache(cache.folder, cache.most_bytes), File("a"))] == [0]


def test_the_least_recently_used_goes_first(cache):
    for place, letter in enumerate("abc"):
        read(cache, File(letter))
        os.utime(next(cache.folder.glob(f"*/{letter}.tar")), (place, place))
    assert read(cache, File("a")) == 0
    read(cache, File("d"))
    assert letters(cache) == "acd"
    assert used(cache) <= cache.most_bytes


def test_it_stays_within_its_bounds(cache):
    for letter in "abcdefgh":
        read(cache, File(letter, 700))
        assert used(cache) <= cache.most_bytes


def test_what_is_held_is_not_evicted(cache):
    with ExitStack() as held:
        for letter in "ab":
            held.enter_context(cache.holding(File(letter), Source(File(letter))))
        for letter in "cde":
            read(cache, File(letter))
            assert {"a", "b"} <= set(letters(cache))
        held.enter_context(cache.holding(File("f"), Source(File("f"))))
        with pytest.raises(CacheFullError, match=r"no room for g\.tar \(1000 bytes\) in .* raise data\.cache_bytes"):
            read(cache, File("g"))
    assert read(cache, File("g")) == 1


def test_a_file_larger_than_the_cache(cache):
    with pytest.raises(CacheFullError, match=r"a\.tar has 3001 bytes, more than the cache may hold: raise data\.cache_bytes=3000"):
        read(cache, File("a", 3001))


def test_a_bound_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="cache_bytes must be at least 1, got 0"):
        FileCache(tmp_path, 0)


def test_what_is_damaged_on_the_disk_is_fetched_again(cache):
    read(cache, File("a"))
    path = next(cache.folder.glob("*/a.tar"))
    path.write_bytes(b"a" * 17)
    assert read(cache, File("a")) == 1


def test_what_has_changed_on_the_disk_is_fetched_again(cache):
    """The file keeps its size; a new process notices, and so does the one that fetched it."""
    read(cache, File("a"))
    for reader in (FileCache(cache.folder, cache.most_bytes), cache):
        path = next(cache.folder.glob("*/a.tar"))
        path.write_bytes(b"a" * (SIZE - 1) + b"b")
        os.utime(path, (7, 7))
        assert [read(reader, File("a")) for _ in range(2)] == [1, 0]


def test_a_checksum_is_taken_once_of_a_file(cache, monkeypatch):
    taken = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: taken.append(Path(file.name).name) or digest(file, name))
    for letter in "aba":
        read(cache, File(letter))
    assert taken == ["a.tar.1000.partial", "b.tar.1000.partial"]
    other = FileCache(cache.folder, cache.most_bytes)
    assert [read(other, File(letter)) for letter in "aba"] == [0, 0, 0]
    assert taken[2:] == ["a.tar", "b.tar"]


def test_wrong_bytes_are_never_in_it(cache):
    wrong = Source(File("b"))
    with pytest.raises(
        ChecksumError, match=rf"a\.tar came twice with sha256 {File('b').sha256}, the index says {File('a').sha256}"
    ):
        cache.holding(File("a"), wrong).__enter__()
    assert wrong.times == 2
    assert not list(cache.folder.glob("*/a*"))


def test_an_error_of_the_source_leaves_nothing(cache):
    def broken(target: Path) -> None:
        target.write_bytes(b"aaa")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.holding(File("a"), broken).__enter__()
    assert not list(cache.folder.glob("*/a*"))
    assert read(cache, File("a")) == 1


def slow(letter: str, folder: Path, begun, fetched) -> None:
    def fetch(target: Path) -> None:
        begun.set()
        with fetched.get_lock():
            fetched.value += 1
        target.write_bytes(File(letter).content[:100])
        time.sleep(0.3)
        target.write_bytes(File(letter).content)

    with FileCache(folder, 3 * SIZE).holding(File(letter), fetch) as place:
        assert (place / f"{letter}.tar").read_bytes() == File(letter).content


def test_processes_that_want_the_same_fetch_it_once(cache):
    fork = multiprocessing.get_context("fork")
    begun, fetched = fork.Event(), fork.Value("i", 0)
    others = [fork.Process(target=slow, args=("a", cache.folder, begun, fetched)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(120)
    assert [other.exitcode for other in others] == [0] * 4
    assert fetched.value == 1


def test_two_that_want_a_file_at_once_hold_it_together(cache, monkeypatch):
    """The first process may hold it until the other has it, as two loading processes that serve batches in turn."""
    both_look, both_hold = threading.Barrier(2), threading.Barrier(2)
    source, looked = Source(File("a")), threading.local()
    is_complete = FileCache._is_complete

    def look(self: FileCache, path: Path, file: File) -> bool:
        found = is_complete(self, path, file)
        if not hasattr(looked, "once"):
            looked.once = both_look.wait(30)
            assert not found
        return found

    def hold(_: int) -> None:
        with FileCache(cache.folder, 3 * SIZE).holding(File("a"), source):
            both_hold.wait(30)

    monkeypatch.setattr(FileCache, "_is_complete", look)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(hold, range(2)))
    assert source.times == 1


def test_what_is_damaged_is_not_taken_from_who_holds_it(cache):
    def no_answer(target: Path) -> None:
        raise OSError("no answer")

    read(cache, File("a"))
    with FileCache(cache.folder, 3 * SIZE).holding(File("a"), Source(File("a"))) as folder:
        (folder / "a.tar").write_bytes(b"b" * SIZE)
        with pytest.raises(OSError, match="no answer"), FileCache(cache.folder, 3 * SIZE).holding(File("a"), no_answer):
            pass
        assert (folder / "a.tar").is_file()
        assert read(FileCache(cache.folder, 3 * SIZE), File("a")) == 1
        assert (folder / "a.tar").read_bytes() == File("a").content


def for_ever(letter: str, folder: Path, begun) -> None:
    def fetch(target: Path) -> None:
        target.write_bytes(File(letter).content[:400])
        begun.set()
        time.sleep(600)

    FileCache(folder, 3 * SIZE).holding(File(letter), fetch).__enter__()


def killed_download(cache: FileCache, letter: str) -> None:
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=for_ever, args=(letter, cache.folder, begun))
    process.start()
    assert begun.wait(120)
    with pytest.raises(CacheFullError):  # 1000 of 3000 bytes are promised to it
        read(FileCache(cache.folder, 1500), File("z"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_killed_download_leaves_nothing_that_is_believed(cache):
    killed_download(cache, "a")
    assert len(list(cache.folder.glob("*/a.tar.*.partial"))) == 1
    assert letters(cache) == ""
    assert read(cache, File("a")) == 1


def test_what_a_killed_download_leaves_is_deleted_and_its_room_free(cache):
    killed_download(cache, "a")
    for letter in "bcd":
        read(cache, File(letter))
    assert letters(cache) == "bcd"
    assert not list(cache.folder.glob("*/*.partial"))


def churn(number: int, folder: Path) -> None:
    cache = FileCache(folder, 3 * SIZE)
    for step in range(40):
        read(cache, File("abcdefg"[(step * (number + 2)) % 7], 700 + number))


def test_many_processes_on_a_cache_that_is_too_small_for_all(cache):
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=churn, args=(number, cache.folder)) for number in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(120)
    assert [other.exitcode for other in others] == [0] * 3
    assert used(cache) <= cache.most_bytes
