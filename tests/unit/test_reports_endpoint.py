"""The client of a chat endpoint against a stub that misbehaves: requests, retries and their limits."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from endpoint_stub import EndpointStub, Reply, says

from echo_pl.llm.answer_cache import AnswerCache, answer_key
from echo_pl.llm.chat import AnswerError, ChatRequest, EndpointError
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec, request_options
from echo_pl.llm.pacing import Pacing
from echo_pl.llm.usage import Usage

SECRET = "sk-very-secret-0123456789"
WORDS = "opacity in the left base"


class Clock:
    """Time that passes only by waiting; it records the waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def client(stub: EndpointStub, *, pacing: Pacing | None = None, **changed) -> ChatEndpoint:
    spec = EndpointSpec(**{"base_url": stub.url, "model": "small", "timeout": 20.0, **changed})
    return ChatEndpoint(spec, pacing=pacing or Pacing(first=0.0))


def question(user: str = WORDS) -> ChatRequest:
    return ChatRequest(system="Answer.", user=user, response_format={"type": "json_object"}, prompt_version="test-1", max_tokens=16)


def upper(text: str) -> str:
    if text == "bad":
        raise AnswerError("not_json", again="at_once")
    return text.upper()


def script(*replies: Reply):
    return lambda request, number: replies[min(number, len(replies) - 1)]


def test_an_answer_and_what_was_sent(monkeypatch):
    monkeypatch.setenv("TEST_KEY", SECRET)
    with EndpointStub(script(says("fine"))) as stub:
        endpoint = client(stub, base_url=stub.url + "/", api_key_variable="TEST_KEY", options={"seed": 7, "temperature": None})
        assert endpoint.complete(question(), upper) == "FINE"
        assert stub.paths == ["/v1/chat/completions"]
        assert stub.headers[0]["Authorization"] == f"Bearer {SECRET}"
        assert stub.requests[0] == {
            "model": "small",
            "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": WORDS}],
            "response_format": {"type": "json_object"},
            "max_tokens": 16,
            "seed": 7,
        }
        assert endpoint.usage == Usage(requests=1, answered=1, prompt_tokens=100, completion_tokens=10)


MISBEHAVIOUR = {
    "timeout": Reply(hang=True),
    "connection": Reply(close=True),
    "rate_limit": Reply(status=429, headers={"Retry-After": "0"}),
    "server_error": Reply(status=500, content=b"<html>"),
    "broken_json": Reply(content=b'{"choices": [{"mess'),
    "truncated": says("fi", finish="length"),
    "empty": says(None),
    "not_json": says("bad"),
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", MISBEHAVIOUR)
def test_a_passing_fault_is_retried(reason):
    with EndpointStub(script(MISBEHAVIOUR[reason], MISBEHAVIOUR[reason], says("fine"))) as stub:
        endpoint = client(stub, timeout=2.0 if reason == "timeout" else 20.0)  # a busy machine may need a second for "fine"
        assert endpoint.complete(question(), upper) == "FINE"
        usage = endpoint.usage
    assert len(stub.requests) == usage.requests == 3
    assert (usage.answered, usage.retries, usage.errors, usage.failures) == (1, 2, {reason: 2}, {})


@pytest.mark.parametrize("reason", MISBEHAVIOUR)
def test_a_lasting_fault_ends_the_question_with_its_reason(reason):
    with EndpointStub(script(MISBEHAVIOUR[reason])) as stub:
        endpoint = client(stub, timeout=0.1 if reason == "timeout" else 20.0, attempts=3)
        with pytest.raises(AnswerError, match="after 3 of 3 tries") as error:
            endpoint.complete(question(), upper)
        usage = endpoint.usage
    assert (error.value.reason, len(stub.requests)) == (reason, 3)
    assert WORDS not in str(error.value)
    assert (usage.answered, usage.retries, usage.errors, usage.failures) == (0, 2, {reason: 3}, {reason: 1})


NO_COMPLETION = [
    (Reply(content=b'{"choices": []}'), "broken_json"),
    (Reply(content=b"[1]"), "broken_json"),
    (Reply(content=says("x").content, half=True), "connection"),
]


@pytest.mark.parametrize(("reply", "reason"), NO_COMPLETION)
def test_an_answer_that_is_no_completion_is_requested_again(reply, reason):
    with EndpointStub(script(reply, says("fine"))) as stub:
        endpoint = client(stub)
        assert endpoint.complete(question(), upper) == "FINE"
        assert endpoint.usage.errors == {reason: 1}


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1}, {"prompt_tokens": "many", "completion_tokens": 3}, {}])
def test_an_answer_with_invalid_counts_is_used(usage):
    with EndpointStub(script(says("fine", usage=usage))) as stub:
        endpoint = client(stub)
        assert endpoint.complete(question(), upper) == "FINE"
        assert (endpoint.usage.unmetered, endpoint.usage.prompt_tokens) == (1, 0)


@pytest.mark.slow
def test_single_bytes_do_not_extend_the_time_limit():
    with EndpointStub(script(Reply(drip=True), says("fine"))) as stub:
        endpoint = client(stub, timeout=2.0)
        assert endpoint.complete(question(), upper) == "FINE"
        assert endpoint.usage.errors == {"timeout": 1}


def test_no_server_at_the_address():
    with EndpointStub(script(says("fine"))) as stub:
        url = stub.url
    endpoint = ChatEndpoint(EndpointSpec(base_url=url, model="small", attempts=2), pacing=Pacing(first=0.0))
    with pytest.raises(AnswerError, match="connection: ConnectError, after 2 of 2 tries"):
        endpoint.complete(question(), upper)


@pytest.mark.parametrize(("status", "why"), [(401, "key"), (403, "key"), (404, "no such address or model"), (307, "redirects")])
def test_a_rejection_stops_the_client_and_names_address_and_model(status, why, monkeypatch):
    monkeypatch.setenv("TEST_KEY", SECRET)
    reply = Reply(status=status, content=WORDS.encode(), headers={"Location": "http://127.0.0.1:1/"})
    with EndpointStub(script(reply)) as stub:
        endpoint = client(stub, api_key_variable="TEST_KEY", concurrency=2)
        with pytest.raises(EndpointError, match=why) as error:
            list(endpoint.map(lambda user: endpoint.complete(question(user), upper), [f"{i}" for i in range(50)]))
        assert stub.url in str(error.value)
        assert "'small'" in str(error.value)
        assert SECRET not in str(error.value)
        assert WORDS not in str(error.value)
        assert len(stub.requests) <= 2, "requests in progress, and no more"
        with pytest.raises(EndpointError):
            endpoint.complete(question(), upper)
        assert len(stub.requests) <= 2


def test_a_bad_request_is_not_repeated():
    content = json.dumps({"error": {"message": WORDS, "code": "context_length_exceeded"}}).encode()
    with EndpointStub(script(Reply(status=400, content=content))) as stub:
        endpoint = client(stub)
        with pytest.raises(AnswerError, match="bad_request: status 400 context_length_exceeded") as error:
            endpoint.complete(question(), upper)
        assert WORDS not in str(error.value)
        assert len(stub.requests) == 1


def test_a_truncated_answer_gets_more_room_and_a_rejected_one_a_higher_temperature():
    with EndpointStub(script(says("fi", finish="length"), says("bad"), says("fi", finish="length"), says("fine"))) as stub:
        client(stub).complete(question(), upper)
    assert [(one["max_tokens"], one["temperature"]) for one in stub.requests] == [(16, 0.0), (32, 0.0), (32, 0.2), (64, 0.2)]


def test_retry_after_holds_for_all_threads_and_waits_grow():
    clock = Clock()
    busy = Reply(status=429, headers={"Retry-After": "30"})
    with EndpointStub(script(busy, Reply(status=500), Reply(status=500), Reply(status=500), says("fine"))) as stub:
        pacing = Pacing(first=1.0, longest=3.0, clock=clock, wait=clock.wait)
        client(stub, pacing=pacing).complete(question(), upper)
    assert 30.0 <= clock.waits[0] <= 31.0
    for waited, longest in zip(clock.waits[1:], (2.0, 3.0, 3.0), strict=True):
        assert longest / 2 <= waited <= longest
    pacing.rest(5.0)
    pacing.before_sending()
    assert 5.0 <= clock.waits[-1] <= 6.0
    pacing.before_sending()
    assert len(clock.waits) == 5, "the rest is over"


def test_a_long_rest_many_retries_and_many_failures_stop_the_client():
    with EndpointStub(script(Reply(status=429, headers={"Retry-After": "3600"}))) as stub:
        with pytest.raises(EndpointError, match="asks to wait 3600 s"):
            client(stub).complete(question(), upper)
        assert len(stub.requests) == 1
    with EndpointStub(script(Reply(status=503))) as stub:
        endpoint = client(stub, retry_budget=3)
        with pytest.raises(EndpointError, match="all 3 retries"):
            endpoint.complete(question(), upper)
        assert (len(stub.requests), endpoint.usage.retries) == (4, 3)
    with EndpointStub(script(Reply(status=400))) as stub:
        endpoint = client(stub, failures_in_a_row=4, concurrency=1)
        found = endpoint.map(lambda user: endpoint.complete(question(user), upper), ["a", "b", "c", "d", "e"])
        with pytest.raises(EndpointError, match="the last 4 questions to model 'small' got no usable answer"):
            list(found)
        assert len(stub.requests) == 4


def test_results_come_in_order_with_failures_among_them():
    together = threading.Barrier(4)

    def answer(request, number):
        if number < 4:
            together.wait(20)  # breaks unless four are in progress at once
        user = request["messages"][1]["content"]
        return Reply(status=400) if user == "7" else says(f"answer {user}")

    with EndpointStub(answer) as stub:
        endpoint = client(stub, concurrency=4)
        found = list(endpoint.map(lambda user: endpoint.complete(question(user), upper), [str(i) for i in range(60)]))
        assert [one for one in found if isinstance(one, str)] == [f"ANSWER {i}" for i in range(60) if i != 7]
        assert isinstance(found[7], AnswerError)
        assert stub.most_at_once == 4
        assert endpoint.usage.answered == 59


def test_items_are_read_as_needed():
    read = []

    def items():
        for i in range(1000):
            read.append(i)
            yield str(i)

    with EndpointStub(script(says("fine"))) as stub:
        endpoint = client(stub, concurrency=2)
        found = endpoint.map(lambda user: endpoint.complete(question(user), upper), items())
        assert next(found) == "FINE"
        assert len(read) == 16
        found.close()
        assert len(stub.requests) <= 16
        assert endpoint.complete(question(), upper) == "FINE", "the client is usable afterwards"


def test_a_rerun_sends_no_request(tmp_path):
    users = [str(i) for i in range(12)]
    with EndpointStub(lambda request, number: says(request["messages"][1]["content"] + "!")) as stub:
        for run in range(2):
            endpoint = client(stub, answers=tmp_path, concurrency=3)
            assert list(endpoint.map(lambda user, e=endpoint: e.complete(question(user), upper), users)) == [u + "!" for u in users]
            assert len(stub.requests) == 12
            assert (endpoint.usage.requests, endpoint.usage.cached) == ((12, 0) if run == 0 else (0, 12))
        other = client(stub, answers=tmp_path, model="large")
        other.complete(question("0"), upper)
        assert len(stub.requests) == 13, "another model has other answers"


def test_only_accepted_answers_are_cached_and_used(tmp_path, caplog):
    with EndpointStub(script(says("bad"), says("fine"))) as stub:
        client(stub, answers=tmp_path).complete(question(), upper)
        assert len(AnswerCache(tmp_path)) == 1

        def stricter(text: str) -> str:
            if text == "fine" and len(stub.requests) == 2:
                raise AnswerError("too_short", again="at_once")
            return text

        assert client(stub, answers=tmp_path).complete(question(), stricter) == "fine"
        assert len(stub.requests) == 3
    assert "is not accepted (too_short)" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", None, "text", "key"])
def test_a_damaged_answer_is_noticed_and_requested_again(tmp_path, caplog, damage):
    with EndpointStub(script(says("fine"))) as stub:
        endpoint = client(stub, answers=tmp_path)
        endpoint.complete(question(), upper)
        path = next(tmp_path.glob("*/*.json"))
        record = json.loads(path.read_bytes())
        if damage is None:
            path.write_bytes(path.read_bytes()[:-5])
        elif isinstance(damage, str):
            path.write_text(json.dumps({**record, damage: "other"}))
        else:
            path.write_bytes(damage)
        assert endpoint.complete(question(), upper) == "FINE"
        assert len(stub.requests) == 2
        assert "damaged" in caplog.text
        assert endpoint.complete(question(), upper) == "FINE"
        assert len(stub.requests) == 2
        assert json.loads(path.read_bytes()) == record


def test_the_cache_is_private_and_leaves_no_partial_files(tmp_path, monkeypatch):
    cache = AnswerCache(tmp_path / "answers")
    key = answer_key("small", "1", {"a": 1})
    assert key != answer_key("small", "2", {"a": 1})
    assert key == answer_key("small", "1", {"a": 1})
    cache.put(key, "text")
    assert {path.stat().st_mode & 0o777 for path in (cache.folder, cache.path(key).parent)} == {0o700}
    assert cache.path(key).stat().st_mode & 0o777 == 0o600

    def full(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        cache.put(key, "other")
    assert [path.name for path in cache.path(key).parent.iterdir()] == [f"{key}.json"]
    assert cache.get(key) == "text"


WRITER = """
import sys, threading
from echo_pl.llm.answer_cache import AnswerCache

def write():
    for _ in range(60):
        AnswerCache(sys.argv[1]).put(sys.argv[2], sys.argv[3] * 20_000)

threads = [threading.Thread(target=write) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_processes_and_threads_may_write_and_read_one_answer_at_once(tmp_path, caplog):
    key = answer_key("m", "1", {})
    cache = AnswerCache(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), key, text], env=environment) for text in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(cache.get(key))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {None, "a" * 20_000, "b" * 20_000}
    assert cache.get(key) is not None
    assert "damaged" not in caplog.text
    assert len(list(cache.path(key).parent.iterdir())) == 1


@pytest.mark.parametrize("key", ["", "two words", "line\nend", "schlüssel"])
def test_an_invalid_key_is_an_error_that_does_not_show_it(monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(ValueError, match="environment variable TEST_KEY") as error:
        EndpointSpec(base_url="http://localhost/v1", model="m", api_key_variable="TEST_KEY")
    assert not key or key not in str(error.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "https://me:secret@host/v1", "http://host/v1?key=secret"]
)
def test_an_invalid_address_is_an_error(url):
    with pytest.raises(ValueError, match="base_url") as error:
        EndpointSpec(base_url=url, model="m")
    assert "secret" not in str(error.value)


def test_numbers_out_of_range_are_errors():
    for changed in ({"concurrency": 0}, {"attempts": 0}, {"timeout": 0}, {"retry_budget": -1}, {"model": ""}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            EndpointSpec(**{"base_url": "http://localhost/v1", "model": "m", **changed})
    with pytest.raises(ValueError, match="first wait"):
        Pacing(first=2.0, longest=1.0)
    with pytest.raises(ValueError, match="'messages' is set by the client"):
        EndpointSpec(base_url="http://localhost/v1", model="m", options={"messages": []})


def test_options_reach_the_request_and_the_name():
    options = request_options(['chat_template_kwargs={"enable_thinking": false}', "max_tokens=null", "seed=7"], temperature=0.5)
    with EndpointStub(script(says("fine"))) as stub:
        endpoint = client(stub, options=options)
        endpoint.complete(question(), upper)
        assert stub.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        assert (stub.requests[0]["temperature"], stub.requests[0]["seed"]) == (0.5, 7)
        assert "max_tokens" not in stub.requests[0]
    assert endpoint.settings.name.startswith("small-")
    assert EndpointSpec(base_url="http://localhost/v1", model="m").name == "m"
    assert request_options([], max_tokens=9) == {"max_tokens": 9}
    for wrong in ("top_p", "top_p=", "=1", "top_p=high"):
        with pytest.raises(ValueError, match="must be NAME=JSON"):
            request_options([wrong])


def test_no_log_holds_report_text_or_the_key(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TEST_KEY", SECRET)
    caplog.set_level("DEBUG")
    monkeypatch.setattr(logging.getLogger("httpx"), "level", logging.DEBUG)
    replies = [*MISBEHAVIOUR.values(), says(f"{WORDS} bad"), says(WORDS)]
    with EndpointStub(script(*(one for one in replies if not one.hang))) as stub:
        endpoint = client(stub, api_key_variable="TEST_KEY", answers=tmp_path, attempts=20)
        assert endpoint.complete(question(), lambda text: upper("bad" if text.endswith("bad") else text)) == WORDS.upper()
    with pytest.raises(AnswerError):
        client(stub, api_key_variable="TEST_KEY", answers=tmp_path, attempts=1).complete(question("other"), upper)
    assert caplog.records
    for record in caplog.records:
        assert SECRET not in record.getMessage()
        assert WORDS not in record.getMessage()
