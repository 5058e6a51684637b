"""The client against servers that misbehave."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TypeVar

import pytest
from label_server import Answer, Behaviour, Body, ChatServer, Disconnect, Drip, Raw, Status, is_probe, text_of

pytest.importorskip("openai", reason="the client needs the extra 'labels'")
pytest.importorskip("tenacity", reason="the client needs the extra 'labels'")

from navsim_recogdrive.pretraining.labelling.client import ChatClient
from navsim_recogdrive.pretraining.labelling.endpoint import (
    Endpoint,
    LabellingError,
    Reply,
    RequestFailed,
    RequestRefused,
    ServerRefuses,
    ServerUnavailable,
)

T = TypeVar("T")
KEY = "sk-a-very-secret-key"
PROBE = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]


def _turns(text: str = "What?") -> list[dict]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]


def _run(server: ChatServer, use: Callable[[ChatClient], Awaitable[T]], **limits: float) -> T:
    limits = {"timeout_s": 2.0, "attempts": 3, "patience_s": 1.0, **limits}

    async def main() -> T:
        async with ChatClient(Endpoint(server.url, KEY, **limits), back_off_s=0.02) as client:
            return await use(client)

    return asyncio.run(main())


def _ask(text: str = "What?") -> Callable[[ChatClient], Awaitable[Reply]]:
    return lambda client: client.ask("tiny", _turns(text), max_tokens=7, temperature=0.5)


def _in_turn(*behaviours: Behaviour) -> Callable[[Body], Behaviour]:
    steps = itertools.chain(behaviours, itertools.repeat(behaviours[-1]))
    return lambda body: next(steps)


def test_an_answer() -> None:
    with ChatServer(lambda body: Answer("<think>a car?</think>\n A car. ")) as server:
        reply = _run(server, _ask())
    assert reply == Reply("A car.", True, 100, 10)
    assert server.keys == [f"Bearer {KEY}"]
    (body,) = server.asked
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 7, 0.5)
    assert body["messages"] == _turns()


def test_cut_off_without_usage_and_without_text() -> None:
    with ChatServer(_in_turn(Answer("A c", "length", usage=False), Answer(None))) as server:
        assert _run(server, _ask()) == Reply("A c", False, None, None)
        assert _run(server, _ask()).text == ""


def test_half_a_surrogate_pair_becomes_text_that_can_be_written() -> None:
    with ChatServer(lambda body: Answer("a\ud83dc")) as server:
        assert _run(server, _ask()).text.encode() == b"a?c"


def test_extra_fields_go_over_ours_and_null_leaves_one_out() -> None:
    async def ask(server: ChatServer) -> None:
        extra = {"max_tokens": None, "max_completion_tokens": 9, "seed": 1}
        async with ChatClient(Endpoint(server.url), extra) as client:
            await client.ask("tiny", _turns(), max_tokens=7, temperature=0.5)

    with ChatServer(lambda body: Answer("x")) as server:
        asyncio.run(ask(server))
    (body,) = server.asked
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["seed"], body["temperature"]) == (9, 1, 0.5)


@pytest.mark.parametrize(
    "trouble",
    [
        Status(500),
        Status(503),
        Status(408),
        Status(409),
        Status(429),
        Raw(b'{"id": "1", "choices": [{"mess'),
        Raw(b"<html>busy</html>", "text/html"),
        Raw(b"{}"),
        Raw(b"[]"),
        Raw(b"null"),
        Raw(b'{"choices": []}'),
        Raw(b'{"choices": [{}]}'),
        Raw(b'{"choices": [{"message": {"content": 5}}]}'),
        Raw(b'\xff\xfe{"choices"'),
        Disconnect(),
    ],
    ids=str,
)
def test_passing_trouble_is_tried_again(trouble: Behaviour) -> None:
    with ChatServer(_in_turn(trouble, trouble, Answer("yes"))) as server:
        assert _run(server, _ask()).text == "yes"
    assert len(server.asked) == 3


@pytest.mark.parametrize("trouble", [Answer("late", after_s=1.0), Drip()], ids=["slow", "drip"])
def test_no_request_lasts_longer_than_the_timeout(trouble: Behaviour) -> None:
    with ChatServer(_in_turn(trouble, Answer("yes"))) as server:
        begun = time.monotonic()
        assert _run(server, _ask(), timeout_s=0.3).text == "yes"
    assert time.monotonic() - begun < 0.9


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_a_pause_for_all_requests(form: str) -> None:
    value = "0.5" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    with ChatServer(_in_turn(Status(429, {"Retry-After": value}), Answer("yes"))) as server:

        async def both(client: ChatClient) -> list[Reply]:
            first = asyncio.create_task(_ask("first")(client))
            await asyncio.sleep(0.2)  # the server has asked for its pause by now
            return list(await asyncio.gather(first, _ask("second")(client)))

        assert [reply.text for reply in _run(server, both, patience_s=5.0)] == ["yes", "yes"]
    first, *later = server.at
    assert len(later) == 2
    assert min(later) - first >= (0.5 if form == "seconds" else 0.7)  # a date has whole seconds


def test_a_pause_longer_than_our_patience_ends_it_at_once() -> None:
    expected = pytest.raises(ServerUnavailable, match="asks to wait 3600 s, longer than the patience of 1 s")
    with ChatServer(lambda body: Status(429, {"Retry-After": "3600"})) as server, expected:
        _run(server, _ask())
    assert len(server.asked) == 1


def test_a_poisonous_request_is_given_up_while_others_are_answered() -> None:
    def behave(body: Body) -> Behaviour:
        return Status(500, message="boom") if text_of(body) == "poison" else Answer("yes")

    with ChatServer(behave) as server:

        async def alone(client: ChatClient) -> None:
            await client.probe("tiny", PROBE)
            with pytest.raises(RequestFailed, match=r"status 500: .*boom.*; 3 attempts"):
                await _ask("poison")(client)
            assert (await _ask("food")(client)).text == "yes"

        _run(server, alone, patience_s=60.0)
    assert len(server.asked) == 4
    assert server.probes == 2  # once at the start, once to tell a bad request from a dead server


def test_a_server_that_answers_nothing_is_waited_for_and_then_given_up() -> None:
    with ChatServer(lambda body: Status(503, message="loading")) as server:
        begun = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"has answered nothing for 1 s .*loading"):
            _run(server, _ask())
    assert 1.0 <= time.monotonic() - begun < 4.0
    assert len(server.asked) > 3


def test_a_server_that_comes_back_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    server = ChatServer(lambda body: Answer("yes")).start()

    async def down_and_up(client: ChatClient) -> Reply:
        await client.probe("tiny", PROBE)
        server.stop()
        waiting = asyncio.create_task(_ask()(client))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        server.start()
        return await waiting

    try:
        assert _run(server, down_and_up, patience_s=20.0).text == "yes"
    finally:
        server.stop()
    said = [record.getMessage() for record in caplog.records if "labelling" in record.name]
    assert len(said) == 2
    assert "trying again" in said[0]
    assert "answers again" in said[1]


@pytest.mark.parametrize(
    ("code", "error"),
    [(400, RequestRefused), (413, RequestRefused), (422, RequestRefused), (401, ServerRefuses), (404, ServerRefuses)],
)
def test_refusals_are_not_tried_again(code: int, error: type[Exception]) -> None:
    expected = pytest.raises(error, match=rf"status {code}: .*too long")
    with ChatServer(lambda body: Status(code, message="too long")) as server, expected:
        _run(server, _ask())
    assert len(server.asked) == 1


def test_the_probe_fails_at_once_where_no_server_is() -> None:
    server = ChatServer(lambda body: Answer("x")).start()
    server.stop()
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable, match=rf"{server.address} does not answer \(no connection: .*--base-url"):
        _run(server, lambda client: client.probe("tiny", PROBE), patience_s=60.0)
    assert time.monotonic() - begun < 5.0


def test_the_probe_says_what_is_refused_and_which_models_there_are() -> None:
    expected = pytest.raises(ServerRefuses, match=r"model 'big' \(.*no such model.*it says it has \['tiny'\]")
    with ChatServer(lambda body: Status(404, message="no such model")) as server, expected:
        _run(server, lambda client: client.probe("big", PROBE))


def test_the_probe_takes_a_busy_server_for_one_that_is_there() -> None:
    with ChatServer(lambda body: Status(429)) as server:
        _run(server, lambda client: client.probe("tiny", PROBE))


def test_the_key_is_neither_shown_nor_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint = Endpoint("http://127.0.0.1:1/v1", KEY)
    assert KEY not in repr(endpoint)
    with ChatServer(_in_turn(Answer(f"you sent {KEY}"))) as server:
        assert _run(server, _ask()).text == "you sent <key>"
    with ChatServer(lambda body: Status(500, message="x" * 290 + KEY)) as server, pytest.raises(LabellingError) as down:
        _run(server, _ask(), patience_s=0.1)
    with (
        ChatServer(lambda body: Status(401, message=f"key {KEY}?")) as server,
        pytest.raises(LabellingError) as refused,
    ):
        _run(server, lambda client: client.probe("tiny", PROBE))
    for text in (str(down.value), str(refused.value), caplog.text):
        assert KEY[:12] not in text
    assert caplog.records


def test_a_short_key_is_a_word_that_answers_may_hold() -> None:
    assert Endpoint("http://host/v1", "EMPTY").scrub("an EMPTY road") == "an EMPTY road"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "the base URL must be like http"),
        ({"base_url": "ftp://host/v1"}, "the base URL must be like http"),
        ({"base_url": "http://host:eighty/v1"}, "the base URL must be like http"),
        ({"base_url": "http:///v1"}, "the base URL must be like http"),
        (
            {"base_url": "http://me:hunter22@host/v1"},
            "holds a user name, a password or a query: give the key in OPENAI",
        ),
        ({"base_url": "me:hunter22@host/v1"}, "holds a user name, a password or a query"),
        ({"base_url": "https://host/v1?api-key=hunter22"}, "holds a user name, a password or a query"),
        ({"base_url": "http://host/v1", "key": "two words"}, "holds spaces"),
        ({"base_url": "http://host/v1", "key": "schlüssel"}, "outside ASCII"),
        ({"base_url": "http://host/v1", "timeout_s": 0}, "timeout_s must be positive, found 0"),
    ],
)
def test_impossible_endpoints(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Endpoint(**arguments)
    assert "hunter22" not in str(error.value)
    assert "two words" not in str(error.value)


def test_probe_is_told_from_questions() -> None:
    assert is_probe({"messages": PROBE})
    assert not is_probe({"messages": _turns()})
