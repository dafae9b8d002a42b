"""A try ends in time, an answer has a size, and what is asked, and with what key, is known before."""

import gzip
import json
import time
from email.utils import formatdate

import pytest
from chat_server import Answer, completion, failure
from llm import RawServer, lines, serving, told

from safetydpo.errors import SafetyDPOError
from safetydpo.llm import connection
from safetydpo.llm.connection import wait_of

TWO = completion(json.dumps({"prompts": ["a red dog", "a blue dog"]}))


def test_an_answer_that_trickles_is_not_waited_for(tmp_path):
    def trickle(send):
        body = TWO.body.ljust(200)
        send(b"HTTP/1.1 200 .\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        for i in range(len(body)):  # whole after ten seconds, and never silent for long
            send(body[i : i + 1])
            time.sleep(0.05)

    server = RawServer(trickle)
    with pytest.raises(SafetyDPOError, match=r"failed 1 requests in a row, the last with: no answer in 1 s\."):
        told(server, tmp_path, "x", timeout=1, retries=1)
    assert server.asked == 2


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_not_taken_in(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(connection, "LARGEST", 2**20)
    body = json.dumps({**json.loads(TWO.body), "spare": "a" * 3 * 2**20}).encode()
    body, head = (gzip.compress(body), b"content-encoding: gzip\r\n") if packed else (body, b"")

    def endless(send):
        send(b"HTTP/1.1 200 .\r\ncontent-type: application/json\r\nconnection: close\r\n%s\r\n" % head + body)

    server = RawServer(endless)
    with pytest.raises(SafetyDPOError, match="an answer of more than 1 MB"):
        told(server, tmp_path, "x", retries=3)
    assert server.asked == 1


def test_packed_answers_are_read(tmp_path):
    server = serving({0: Answer(gzip.compress(TWO.body), headers={"content-encoding": "gzip"})})
    assert told(server, tmp_path, "x") == [(["a red dog", "a blue dog"], "")]


def test_what_speaks_no_http_is_a_failed_request(tmp_path):
    with pytest.raises(SafetyDPOError, match="failed 1 requests in a row, the last with: Connection error"):
        told(RawServer(lambda send: send(b"SSH-2.0-x\r\n" * 99)), tmp_path, "x", retries=0)


@pytest.mark.parametrize("headers", [{"retry-after": "300"}, {"retry-after-ms": "300000"}])
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_wants_a_long_wait_ends_the_stage_and_says_so(tmp_path, headers, status):
    server = serving({0: failure(status, "later", **headers)})
    with pytest.raises(
        SafetyDPOError, match=r"/v1 wants no request for 300 seconds \(.*later.*\): run the same command"
    ):
        told(server, tmp_path, "x", concurrency=4)
    assert len(server.requests) == 1


def test_waits_are_read_as_numbers_and_dates():
    date = formatdate(time.time() + 3600, usegmt=True)
    assert wait_of({"retry-after": date}) == pytest.approx(3600, abs=30)
    assert [wait_of({"retry-after": text}) for text in ("1.5", "", "soon", "nan", "1e999")] == [1.5, 0, 0, 0, 0]


def test_a_connection_that_cannot_be_made_is_no_timeout_and_costs_nothing(tmp_path):
    server = RawServer(lambda send: server.stop())  # answers nothing, and is not there afterwards
    with pytest.raises(SafetyDPOError, match=r"the last with: Connection error\. Cannot connect to host 127\.0\.0\.1"):
        told(server, tmp_path, "x", retries=2, timeout=9)
    lost = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    sent = [bool(one["sent"]) for one in lost]
    assert (sent[0], sent[-1]) == (True, False)  # the second may still have been sent over an old connection


def test_the_server_of_the_environment_is_named(tmp_path, monkeypatch):
    server = serving({0: failure(404, "no such model")}, lines)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with pytest.raises(
        SafetyDPOError, match=rf"^{server.url} has no model m \(.*\): correct prompts.llm.model or OPENAI_BASE_URL\.$"
    ):
        told(server, tmp_path, "x", base_url=None)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(
        SafetyDPOError,
        match=r"^Nothing answers at http://127.0.0.1:1/v1 .*start the server, or correct OPENAI_BASE_URL",
    ):
        told(server, tmp_path, "x", base_url=None)
    assert told(server, tmp_path, "x")[0][1] == ""  # the config goes before
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hunter2@localhost/v1")
    with pytest.raises(SafetyDPOError, match="variable OPENAI_BASE_URL holds a user, a password or a key") as error:
        told(server, tmp_path, "x", base_url=None)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-first\nsk-second", "sk-“first”", "sk first"])
def test_a_key_that_is_none_is_not_sent_nor_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    server = serving()
    with pytest.raises(SafetyDPOError, match="variable MY_KEY has what no key has") as error:
        told(server, tmp_path, "x", api_key_env="MY_KEY")
    assert "first" not in str(error.value)
    assert not server.requests


def test_a_proxy_that_cannot_be_used_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://me:hunter2@127.0.0.1:1")
    with pytest.raises(SafetyDPOError, match=r"environment's proxy .* is none that can be used") as error:
        told(serving(), tmp_path, "x")
    assert "hunter2" not in str(error.value)
