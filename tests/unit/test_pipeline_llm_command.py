"""The command with a language model that misbehaves in every way: nothing is lost, no answered request is repeated."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from commands import command
from endpoint_stub import EndpointStub, Reply, normal_answer, says
from forked import begin_child
from pipeline_fakes import row, write_dataset

from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.llm import endpoint
from echo_pl.llm.answer_cache import AnswerCache
from echo_pl.llm.pacing import Pacing

pytestmark = pytest.mark.slow

main = command("corpus", "prepare")

STUDIES = 12
HOPELESS = 8
FIRST = {
    0: Reply(hang=True),
    1: Reply(status=429, headers={"Retry-After": "0"}),
    2: Reply(content=b'{"choices": []}' * 9, half=True),
    3: says('{"lungs": {"mentioned": tr'),
    4: says("{}", finish="length"),
    5: Reply(status=503),
    6: Reply(close=True),
    7: Reply(content=b"<html>Bad gateway</html>"),
}
"""Replies to the first request about a study; the second gets a valid answer."""


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    finding = "There is a {} mm nodule in the right upper lobe."
    rows = (row(n, findings=finding.format(30 + n), impression="Nodule in the right upper lobe.") for n in range(STUDIES))
    return write_dataset(tmp_path_factory.mktemp("source"), rows)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(endpoint, "Pacing", partial(Pacing, first=0.0, longest=0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def study_of(request: dict) -> int:
    return int(re.search(r"(\d+) mm", request["messages"][1]["content"])[1]) - 30


def run(table: Path, out: Path, answers: Path, stub: EndpointStub, *options: str, timeout: float = 60.0) -> int:
    return main([
        *("--reader", "table", "--source", str(table), "--reader-option", "columns.patient=patient"),
        *("--engine", "llm", "--endpoint", stub.url, "--model", "m", "--answers", str(answers), "--concurrency", "3"),
        *options, *("--timeout", str(timeout), "--vocab-size", "300", "--workers", "0", "--quiet", "--out", str(out)),
    ])  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_fault_is_survived_and_a_rerun_sends_no_answered_request(table, tmp_path, capsys):
    asked: Counter[int] = Counter()

    def answer(request: dict, number: int) -> Reply:
        study = study_of(request)
        asked[study] += 1
        if study == HOPELESS:
            return says("I cannot help with that.")
        return FIRST[study] if asked[study] == 1 and study in FIRST else says(json.dumps(normal_answer(request)))

    out, answers = tmp_path / "one", tmp_path / "answers"
    with EndpointStub(answer) as stub:
        assert run(table, out, answers, stub, timeout=2.0) == 3
        printed = capsys.readouterr()
        assert "to review: 1, see review.jsonl (normalize: not_json 1)" in printed.out
        assert "mm nodule" not in printed.out + printed.err
        answered = f"{len(stub.requests)} requests, {STUDIES - 1} questions answered and 0 found in the cache"
        assert f"llm-m-prompt1-en: {answered}" in printed.out
        assert "rate_limit 1" in printed.out
        assert "given up: not_json 1" in printed.out
        assert sum(shard.samples for shards in CorpusIndex.load(out).splits.values() for shard in shards) == STUDIES - 1
        assert all(asked[study] >= 2 for study in FIRST)
        assert asked[HOPELESS] == 5
        asked.clear()
        assert run(table, out, answers, stub) == 3
        assert not asked, "the corpus exists"
        assert run(table, tmp_path / "two", answers, stub) == 3
        assert set(asked) == {HOPELESS}, "no answered request is repeated"
    assert contents(tmp_path / "two") == contents(out)


def test_a_run_killed_while_it_waits_for_answers_resumes(table, tmp_path, capsys):
    asked: Counter[int] = Counter()
    healthy = False

    def answer(request: dict, number: int) -> Reply:
        if not healthy and number >= 6:
            return Reply(hang=True)
        asked[study_of(request)] += 1
        return says(json.dumps(normal_answer(request)))

    cache = AnswerCache(tmp_path / "answers")
    with EndpointStub(answer) as stub:
        child = os.fork()
        if child == 0:
            try:
                begin_child()
                run(table, tmp_path / "out", tmp_path / "answers", stub)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 60
        while len(cache) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        healthy = True
        assert run(table, tmp_path / "out", tmp_path / "answers", stub) == 0
        assert asked == Counter(range(STUDIES)), "each study was answered once"
        assert run(table, tmp_path / "whole", tmp_path / "others", stub) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_options_of_the_command_line_reach_the_request(table, tmp_path, capsys):
    with EndpointStub(lambda request, number: says(json.dumps(normal_answer(request)))) as stub:
        options = (
            "--temperature",
            "0.5",
            "--max-tokens",
            "99",
            "--request-option",
            'chat_template_kwargs={"enable_thinking": false}',
        )
        assert run(table, tmp_path / "out", tmp_path / "answers", stub, *options) == 0
        assert {(one["temperature"], one["max_tokens"]) for one in stub.requests} == {(0.5, 99)}
        assert all(one["chat_template_kwargs"] == {"enable_thinking": False} for one in stub.requests)
        assert re.search(r"llm-m-[0-9a-f]{8}-prompt1-en: ", capsys.readouterr().out)
        assert run(table, tmp_path / "other", tmp_path / "answers", stub, "--request-option", "top_p") == 2
    assert "must be NAME=JSON" in capsys.readouterr().err
