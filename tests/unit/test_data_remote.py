"""Corpora behind URLs: the same batches as from a folder, whatever the server does; forbidden answers are reported."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from http_folder import HTTPFolder, serving

from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.store import remote_folder
from echo_pl.data.store.corpus_folder import LocalCorpus, RemoteCorpus, open_folder
from echo_pl.data.store.corpus_index import AttachedFile, CorpusIndex
from echo_pl.data.store.file_cache import CacheFullError, ChecksumError, FileCache
from echo_pl.data.store.remote_folder import RemoteFileError, RemoteFolder, RetryPolicy

QUICK = RetryPolicy(attempts=3, first_wait=0.01, timeout=30.0)
HASTY = replace(QUICK, timeout=0.2)
"""For a server that stays silent; where an answer has to come in time, a busy machine may need seconds for it."""
ROOM = 10**9


@pytest.fixture(scope="module")
def root(medium_data) -> Path:
    return medium_data / "synthetic"


@pytest.fixture
def server(root):
    with serving(root) as state:
        yield state


def module(root: str | Path, cache: Path | None = None, **options) -> ReportDataModule:
    return ReportDataModule(root=root, cache_dir=cache, **{"batch_size": 8, "shuffle_buffer": 10, "seed": 1, **options})


def corpus(url: str, cache: Path, retry: RetryPolicy = QUICK) -> RemoteCorpus:
    return RemoteCorpus(remote=RemoteFolder(url=url, retry=retry), cache=FileCache(cache, ROOM))


def same(one, other) -> bool:
    tensors = ("context_ids_BP", "response_ids_BR", "pixel_values", "labels_BF")
    return one.keys == other.keys and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_over_http_as_from_the_folder(root, server, tmp_path, workers):
    there, here = module(server.url, tmp_path, num_workers=workers), module(root)
    there.setup()
    assert there.fingerprint == here.fingerprint
    for a, b in ((there.train_dataloader(), here.train_dataloader()), (there.val_dataloader(), here.val_dataloader())):
        assert all(same(one, other) for one, other in zip(a, b, strict=True))
    assert set(there.images("val", ["val-0000003"])) == {"val-0000003"}
    shards = [name for name in server.asked if name.endswith(".tar")]
    assert len(shards) == len(set(shards)), "every shard came once, whoever read it"


def test_a_reader_that_is_forked_does_not_take_the_parents_connection(root, tmp_path, caplog):
    """It throws its copy of what the parent has open away, whose socket the parent's loop watches through the same epoll."""
    first, second, third = CorpusIndex.load(root).shards("train")[:3]

    def fetch_in_child() -> None:
        held(corpus(server.url, tmp_path, impatient), second)

    impatient = replace(QUICK, timeout=5.0)
    with serving(root, "HTTP/1.1") as server:
        held(corpus(server.url, tmp_path, impatient), first)
        child = multiprocessing.get_context("fork").Process(target=fetch_in_child)
        child.start()
        child.join(120)
        assert child.exitcode == 0
        held(corpus(server.url, tmp_path, impatient), third)
    assert server.asked == [first.name, second.name, third.name]
    assert "attempt 1" not in caplog.text
    assert server.connections == 3


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_protocols(root, tmp_path, protocol):
    if protocol == "memory":
        files = fsspec.filesystem("memory")
        files.put(f"{root}/", "/lab/corpus/", recursive=True)
    url = "memory://lab/corpus" if protocol == "memory" else f"file://{root}"
    there = module(url, tmp_path)
    assert all(same(a, b) for a, b in zip(there.train_dataloader(), module(root).train_dataloader(), strict=True))
    assert list(tmp_path.glob("*/train-*.tar"))


def test_s3(root, tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="needs the extra s3")
    moto = pytest.importorskip("moto.server", reason="needs moto[server], an S3 to test against")
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("lab")
        files.put(f"{root}/", "lab/corpus/", recursive=True)
        there = module("s3://lab/corpus", tmp_path)
        assert all(same(a, b) for a, b in zip(there.train_dataloader(), module(root).train_dataloader(), strict=True))
        with pytest.raises(FileNotFoundError, match=r"there is no s3://lab/corpus/absent\.tar"):
            RemoteFolder(url="s3://lab/corpus", retry=QUICK).read("absent.tar", 10)
    finally:
        server.stop()


def test_s3_without_its_library(monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # where fsspec keeps what it has imported
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://lab/corpus cannot be read: .*pip install 'echo-pl\[s3\]'"):
        RemoteFolder(url="s3://lab/corpus")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("simplecache::http://h/corpus", "never from a URL or a command of another kind"),
        ("http://h/a::file:///etc", "never from a URL or a command of another kind"),
        ("zip://a.zip::http://h", "never from a URL or a command of another kind"),
        ("ssh://host/corpus", "never from a URL or a command of another kind"),
        ("pipe://cat x", "never from a URL or a command of another kind"),
        ("github://a:b@/c", "never from a URL or a command of another kind"),
        ("HTTP://h/corpus", "never from a URL or a command of another kind"),
        ("https://user:secret@h/corpus", "on h holds credentials"),
        ("https://h/corpus?signature=1", "without query"),
        ("https://h/corp us", "without query, fragment or spaces"),
    ],
)
def test_other_urls_are_rejected(tmp_path, url, message):
    with pytest.raises(ValueError, match=message) as caught:
        module(url, tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("command", ["pipe:cat x", "file:a", "s3:a", "simplecache::a"])
def test_commands_are_rejected(tmp_path, command):
    with pytest.raises(ValueError, match="never from a URL or a command"):
        open_folder(command, tmp_path, ROOM)


def test_a_url_needs_a_cache(server):
    with pytest.raises(ValueError, match=r"say where it is with data\.cache_dir="):
        module(server.url)
    assert isinstance(open_folder("/mnt/corpus", None, ROOM), LocalCorpus)


def held(folder: RemoteCorpus, shard) -> bytes:
    with folder.holding(shard) as place:
        return (place / shard.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "timeout"), [("503", 30.0), ("429", 30.0), ("cut", 30.0), ("silent", 2.0)])
def test_faults_that_pass_are_waited_for(root, server, tmp_path, caplog, fault, timeout):
    shard = CorpusIndex.load(root).shards("train")[0]
    server.faults[shard.name] = [fault, fault]
    assert held(corpus(server.url, tmp_path, replace(QUICK, timeout=timeout)), shard) == (root / shard.name).read_bytes()
    assert server.asked == [shard.name] * 3
    assert f"{server.url}/{shard.name}: attempt 1 of 3 failed" in caplog.text
    assert "again in 0.02 s" in caplog.text


@pytest.mark.parametrize(
    ("fault", "retry", "message"),
    [("503", QUICK, "status 503"), ("silent", HASTY, "Timeout"), ("cut", QUICK, "ClientPayloadError")],
)
def test_persistent_faults_are_reported(root, server, tmp_path, fault, retry, message):
    shard = CorpusIndex.load(root).shards("train")[0]
    server.faults[shard.name] = [fault] * 9
    with pytest.raises(RemoteFileError, match=rf"{server.url}/{shard.name} could not be fetched in 3 attempts.*{message}"):
        held(corpus(server.url, tmp_path, retry), shard)
    assert not list(tmp_path.glob("*/*.tar*")), "nothing half is left"


@pytest.mark.parametrize(
    ("fault", "kind", "message"), [("404", FileNotFoundError, "there is no"), ("403", RemoteFileError, "status 403")]
)
def test_faults_that_do_not_pass_are_not_waited_for(root, server, tmp_path, fault, kind, message):
    shard = CorpusIndex.load(root).shards("train")[0]
    server.faults[shard.name] = [fault] * 9
    with pytest.raises(kind, match=rf"{message}|{server.url}/{shard.name}"):
        held(corpus(server.url, tmp_path), shard)
    assert server.asked == [shard.name]


@pytest.mark.parametrize(("fault", "times"), [("says_nothing", 1), ("says_less", 2), ("says_more", 2), ("says_nonsense", 2)])
def test_a_server_that_lies_about_a_length(root, server, tmp_path, fault, times):
    shard = CorpusIndex.load(root).shards("train")[0]
    server.faults[shard.name] = [fault]
    assert held(corpus(server.url, tmp_path), shard) == (root / shard.name).read_bytes()
    assert server.asked == [shard.name] * times
    assert not list(tmp_path.glob("*/*.partial"))


@pytest.mark.parametrize("fault", ["wrong", "longer"])
def test_a_corrupt_download_is_fetched_once_more(root, server, tmp_path, caplog, fault):
    shard = CorpusIndex.load(root).shards("train")[0]
    server.faults[shard.name] = [fault]
    assert held(corpus(server.url, tmp_path), shard) == (root / shard.name).read_bytes()
    assert server.asked == [shard.name] * 2
    assert f"the index says {shard.sha256}" in caplog.text


def test_a_corrupt_shard_is_an_error_that_names_both_checksums(root, server, tmp_path):
    shard = CorpusIndex.load(root).shards("train")[0]
    server.faults[shard.name] = ["wrong", "wrong"]
    with pytest.raises(ChecksumError, match=rf"{server.url}/{shard.name}: .* sha256 [0-9a-f]{{64}}, the index says {shard.sha256}"):
        held(corpus(server.url, tmp_path), shard)
    assert server.asked == [shard.name] * 2
    assert not list(tmp_path.glob("*/*.tar*"))
    assert held(corpus(server.url, tmp_path), shard)


def test_a_worker_says_which_shard_is_corrupt(root, server, tmp_path):
    data = module(server.url, tmp_path, num_workers=1)
    for shard in data.index.shards("train"):
        server.faults[shard.name] = ["wrong"] * 9
    with pytest.raises(ChecksumError, match=r"train-00000\d\.tar came twice with sha256"):
        list(data.train_dataloader())


def test_a_damaged_index_is_fetched_once_more(root, server, tmp_path, caplog):
    server.faults["index.json"] = ["wrong"]
    assert corpus(server.url, tmp_path).load_index() == CorpusIndex.load(root)
    assert "fetched once more" in caplog.text
    server.faults["index.json"] = ["wrong", "wrong"]
    with pytest.raises(ValueError, match=rf"{server.url}/index\.json"):
        corpus(server.url, tmp_path).load_index()


def test_an_index_of_other_shards_than_it_was_written_for(root, server, tmp_path):
    server.folder = Path(shutil.copytree(root, tmp_path / "changed"))
    record = json.loads((root / "index.json").read_text())
    record["splits"]["train"][0]["sha256"] = "0" * 64
    (server.folder / "index.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"says fingerprint .*, what it holds has"):
        corpus(server.url, tmp_path / "cache").load_index()


def test_an_index_changed_where_no_fingerprint_sees_it(root, server, tmp_path):
    server.folder = Path(shutil.copytree(root, tmp_path / "changed"))
    content = (root / "index.json").read_text()
    (server.folder / "index.json").write_text(content.replace("effusion_left", "effusion_lift"))
    with pytest.raises(ValueError, match=r"says checksum .*, what it holds has"):
        corpus(server.url, tmp_path / "cache").load_index()


def test_no_corpus_there(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"there is no {server.url}x/index\.json"):
        module(f"{server.url}x", tmp_path).setup()


def test_the_tokenizer_is_checked_and_kept(root, server, tmp_path):
    server.faults["tokenizer/tokenizer.json"] = ["wrong"]
    here = module(root)
    assert module(server.url, tmp_path).vocabulary_fingerprint == here.vocabulary_fingerprint
    assert module(server.url, tmp_path).vocabulary_fingerprint == here.vocabulary_fingerprint
    assert server.asked.count("tokenizer/tokenizer.json") == 2
    server.faults["tokenizer/tokenizer.json"] = ["wrong"] * 2
    with pytest.raises(ChecksumError, match=r"tokenizer/tokenizer\.json came twice"):
        _ = module(server.url, tmp_path / "other").tokenizer
    assert not list((tmp_path / "other").glob("tokenizers/*/tokenizer.json"))


def test_an_index_without_a_tokenizer(root, server, tmp_path):
    server.folder = Path(shutil.copytree(root, tmp_path / "old"))
    replace(CorpusIndex.load(root), files=()).save(server.folder)
    with pytest.raises(FileNotFoundError, match=r"names no tokenizer: run `echo-pl corpus make` again.*data\.tokenizer_path"):
        _ = module(server.url, tmp_path / "cache").tokenizer
    assert module(server.url, tmp_path / "cache", tokenizer_path=root / "tokenizer").vocab_size == module(root).vocab_size


def test_a_tokenizer_that_is_damaged_in_the_cache_is_copied_again(root, server, tmp_path):
    fingerprint = module(server.url, tmp_path).vocabulary_fingerprint
    (copy,) = tmp_path.glob("tokenizers/*/tokenizer.json")
    copy.write_bytes(copy.read_bytes().replace(b"lung", b"lunk"))
    assert module(server.url, tmp_path).vocabulary_fingerprint == fingerprint
    assert server.asked.count("tokenizer/tokenizer.json") == 1, "the cache's own is whole"


def test_a_shard_that_changes_in_the_cache_is_fetched_again_by_the_next_process(root, server, tmp_path, caplog):
    shard = CorpusIndex.load(root).shards("train")[0]
    held(corpus(server.url, tmp_path), shard)
    (path,) = tmp_path.glob(f"*/{shard.name}")
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    assert held(corpus(server.url, tmp_path), shard) == (root / shard.name).read_bytes()
    assert server.asked == [shard.name] * 2
    assert "has changed in the cache" in caplog.text


def test_a_cache_smaller_than_a_shard_is_rejected_at_the_start(root, server, tmp_path):
    largest = max(CorpusIndex.load(root).shards("train"), key=lambda shard: shard.bytes)
    with pytest.raises(CacheFullError, match=rf"{largest.name} has .* raise data\.cache_bytes={largest.bytes - 1}"):
        module(server.url, tmp_path, cache_bytes=largest.bytes - 1).setup()
    assert server.asked == ["index.json"]


def test_a_cache_of_one_shard_is_enough(root, server, tmp_path):
    most = max(shard.bytes for shards in CorpusIndex.load(root).splits.values() for shard in shards)
    there = module(server.url, tmp_path, cache_bytes=most, tokenizer_path=root / "tokenizer")
    assert all(same(a, b) for a, b in zip(there.train_dataloader(), module(root).train_dataloader(), strict=True))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= most


@pytest.mark.parametrize("name", ["../x/a", "a/b/c", "/a", "a", "tokenizer/..", "tokenizer/a b", "tokenizer/pipe:x"])
def test_attached_files_have_plain_names(name):
    with pytest.raises(ValueError, match="an attached file must be folder/file"):
        AttachedFile(name=name, bytes=1, sha256="0" * 64)


def test_a_hostile_index_asks_for_nothing_else(server, root, tmp_path):
    shard = CorpusIndex.load(root).shards("train")[0]
    for change in ({"name": "a?b.tar"}, {"name": "a%2e%2e.tar"}):
        with pytest.raises(ValueError, match="is not a plain file name"):
            held(corpus(server.url, tmp_path), replace(shard, **change))
    with pytest.raises(ValueError, match="the index has no sha256"):
        held(corpus(server.url, tmp_path), replace(shard, sha256="../../x"))
    assert not server.asked


def test_resume_fetches_only_what_it_needs(root, server, tmp_path):
    whole = module(root, shuffle_buffer=0).train_dataloader()
    keys = [batch.keys for batch in whole]
    state = {"epoch": 0, "batches_done": 4, "order": str(whole._order)}
    data = module(server.url, tmp_path, shuffle_buffer=0)
    loader = data.train_dataloader()
    loader.load_state_dict(state)
    assert [batch.keys for batch in loader] == keys[4:]
    shards = [name for name in server.asked if name.endswith(".tar")]
    assert len(shards) == 1, "the last eight of forty studies are in one shard of ten"


def test_the_next_shard_is_fetched_while_one_is_read(root, server, tmp_path):
    loader = iter(module(server.url, tmp_path, shuffle_buffer=0, batch_size=2).train_dataloader())
    next(loader)
    deadline = time.monotonic() + 60
    while len(shards := {name for name in server.asked if name.endswith(".tar")}) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(shards) == 2


def test_a_failed_prefetch_is_reported_when_its_shard_is_wanted(root, server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = module(server.url, tmp_path, shuffle_buffer=0)
    _ = data.tokenizer
    order, _ = data._training_order(0, 1).epoch(0)
    second = data.index.shards("train")[order.shards[1]].name
    server.faults[second] = ["403"] * 9
    with pytest.raises(RemoteFileError, match=f"{second} cannot be fetched: status 403"):
        list(data.train_dataloader())


def test_keys_of_fsspec_reach_the_server(root, tmp_path, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"X-Key": "1"}})
    seen = []
    with serving(root) as state:
        answer = state.answer
        state.answer = lambda request: seen.append(request.headers.get("X-Key")) or answer(request)
        corpus(state.url, tmp_path).load_index()
    assert seen == ["1"]


def test_a_retry_policy_is_checked():
    with pytest.raises(ValueError, match="a retry policy needs attempts >= 1"):
        RetryPolicy(attempts=0)


def test_waiting_grows(server: HTTPFolder, monkeypatch):
    waits = []
    monkeypatch.setattr(remote_folder.time, "sleep", waits.append)
    server.pause = 0.0
    server.faults["index.json"] = ["503"] * 9
    with pytest.raises(RemoteFileError):
        RemoteFolder(url=server.url, retry=RetryPolicy(attempts=4, first_wait=0.5)).read("index.json", 10)
    assert [wait for wait in waits if wait] == [0.5, 1.0, 2.0]
