"""Folder of a corpus: a local one, read in place, or a remote one, read through a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from echo_pl.data.store.corpus_index import INDEX_NAME, AttachedFile, CorpusIndex, Shard, check_local, record_checksum
from echo_pl.data.store.file_cache import ChecksumError, FileCache
from echo_pl.data.store.remote_folder import RemoteFolder, TooLongError, is_url
from echo_pl.io.atomic import write_bytes_atomic

logger = logging.getLogger(__name__)

MAX_INDEX_BYTES = 512 * 2**20
TOKENIZER = "tokenizer"


class CorpusFolder(Protocol):
    """Folder of a corpus."""

    def load_index(self) -> CorpusIndex:
        """Read the index."""

    def holding(self, shard: Shard) -> AbstractContextManager[Path]:
        """Yield a local folder that holds the shard, for as long as the ``with`` lasts."""

    def fetch_ahead(self, shard: Shard) -> None:
        """Make ready, in the background, a shard that will be wanted next."""

    def tokenizer(self, index: CorpusIndex) -> Path:
        """The local folder of the corpus's own tokenizer."""


@dataclass(frozen=True, kw_only=True)
class LocalCorpus:
    """A corpus in a local or mounted folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def load_index(self) -> CorpusIndex:
        """Read the index.

        Raises:
            FileNotFoundError: If the folder holds no complete corpus.
            ValueError: If the index is damaged.
        """
        return CorpusIndex.load(self.path)

    def holding(self, shard: Shard) -> AbstractContextManager[Path]:
        """Yield the folder itself."""
        return nullcontext(self.path)

    def fetch_ahead(self, shard: Shard) -> None:
        """Nothing: it is there."""

    def tokenizer(self, index: CorpusIndex) -> Path:
        """The folder beside the shards."""
        return self.path / TOKENIZER


@dataclass(frozen=True, kw_only=True)
class RemoteCorpus:
    """A remote corpus.

    The index is checked by the checksum that it holds of itself, shards and tokenizer by the index.
    """

    remote: RemoteFolder
    cache: FileCache

    def __str__(self) -> str:
        return self.remote.url

    def load_index(self) -> CorpusIndex:
        """Download and read the index, a second time if it is damaged.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, twice, or the cache is smaller than one of its shards.
            OSError: If it cannot be fetched.
        """
        place = self.remote.place(INDEX_NAME)
        try:
            index = self._read_index(place)
        except ValueError as error:
            logger.warning("%s; fetched once more", error)
            index = self._read_index(place)
        for shards in index.splits.values():
            for shard in shards:
                self.cache.check_fits(shard)  # now, not when its turn comes
        return index

    def _read_index(self, place: str) -> CorpusIndex:
        content = self.remote.read(INDEX_NAME, MAX_INDEX_BYTES)
        index = CorpusIndex.parse(content, place)
        record = json.loads(content)
        for name, found in (("fingerprint", index.fingerprint), ("checksum", record_checksum(record))):
            if record.get(name, found) != found:  # indices from before have no checksum
                raise ValueError(
                    f"{place} says {name} {record[name]}, what it holds has {found}: it is damaged, copy it there again"
                )
        return index

    def holding(self, shard: Shard) -> AbstractContextManager[Path]:
        """Yield the folder of the cache that holds the shard.

        Raises:
            ValueError: If its checksum is not that of the index, or the cache has no room.
            OSError: If it cannot be fetched.
        """
        return self._holding(shard)

    @contextmanager
    def _holding(self, file: Shard | AttachedFile) -> Iterator[Path]:
        def fetch(target: Path) -> None:
            with contextlib.suppress(TooLongError):  # then its checksum differs, and the cache reports that
                self.remote.fetch(file.name, target, file.bytes)

        try:
            with self.cache.holding(file, fetch) as folder:
                yield folder
        except ChecksumError as error:
            raise ChecksumError(f"{self.remote.place(file.name)}: {error}") from error

    def fetch_ahead(self, shard: Shard) -> None:
        """Download a shard into the cache in a thread; a reader that needs it meanwhile waits for the cache's lock."""
        threading.Thread(target=self._fetch_quietly, args=(shard,), daemon=True).start()

    def _fetch_quietly(self, shard: Shard) -> None:
        try:
            with self.holding(shard):
                pass
        except (ValueError, OSError) as error:  # the reader that needs it tries again and reports the error
            logger.info("%s was not fetched ahead: %s", shard.name, error)

    def tokenizer(self, index: CorpusIndex) -> Path:
        """The folder with the tokenizer's files, copied from the cache under the checksum of them all.

        Raises:
            FileNotFoundError: If the index does not name them, or one is not there.
            ValueError: If the checksum of one is not that of the index.
            OSError: If one cannot be fetched.
        """
        files = [file for file in index.files if file.name.startswith(f"{TOKENIZER}/")]
        if not files:
            raise FileNotFoundError(
                f"the index of {self} names no tokenizer: run `echo-pl corpus make` again where it was made, which adds it to an "
                "old corpus, and copy it there again; or give data.tokenizer_path=<a local folder>"
            )
        identity = hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode()).hexdigest()
        target = self.cache.folder / "tokenizers" / identity
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            copy = target / file.name.rsplit("/", 1)[1]
            if not copy.is_file() or hashlib.sha256(copy.read_bytes()).hexdigest() != file.sha256:
                self._copy(file, copy)
        return target

    def _copy(self, file: AttachedFile, copy: Path) -> None:
        with self._holding(file) as folder:
            write_bytes_atomic(copy, (folder / copy.name).read_bytes())


def open_folder(root: Path | str, cache_dir: Path | str | None, cache_bytes: int) -> CorpusFolder:
    """A corpus's folder by its path or URL.

    Args:
        root: Path of a local or mounted folder, or a URL of :data:`echo_pl.data.store.remote_folder.PROTOCOLS`.
        cache_dir: Folder for downloaded files.
        cache_bytes: Most bytes there.

    Raises:
        ValueError: If it is another URL or a command, or there is no folder for the cache.
    """
    if not is_url(root):
        return LocalCorpus(path=check_local(root))
    remote = RemoteFolder(url=str(root))
    if cache_dir is None:
        raise ValueError(f"{root} is read through a local cache: say where it is with data.cache_dir=<folder>")
    return RemoteCorpus(remote=remote, cache=FileCache(check_local(cache_dir), cache_bytes))
