"""The connection to a server: one answer per call, whatever it takes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import openai
import tenacity

from navsim_recogdrive.pretraining.labelling.endpoint import (
    Endpoint,
    Reply,
    RequestRefused,
    ServerRefuses,
    ServerUnavailable,
)
from navsim_recogdrive.pretraining.labelling.retrying import Retries, ServerState, Transient

Message = dict[str, Any]
"""One turn of a conversation as the API has it: ``role`` and ``content``."""

_LOG = logging.getLogger(__name__)
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_TRANSIENT = (408, 409, 425, 429)
_MISCONFIGURED = (401, 403, 404, 405)
_PROBE_TOKENS = 16
_SHOWN = 300


class ChatClient:
    """Asks one server; any number of coroutines of one event loop may use it at once.

    A request that fails for a passing reason (no connection, a timeout, 408, 409, 425, 429, 5xx, an answer that is no
    completion) is tried again, see :class:`~navsim_recogdrive.pretraining.labelling.retrying.Retries`. Where the server
    asks for a pause (``Retry-After``), all requests make it.

    Args:
        endpoint: the server.
        extra: fields that are put into every request, over those of this package; one that is ``None`` is left out.
        back_off_s: the first wait; it doubles up to a minute.
    """

    def __init__(self, endpoint: Endpoint, extra: Mapping[str, Any] | None = None, back_off_s: float = 1.0) -> None:
        self.endpoint = endpoint
        self._extra = dict(extra or {})
        self._back_off_s = back_off_s
        self._server = ServerState()
        self._probe: tuple[str, Sequence[Message]] | None = None
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.key, timeout=endpoint.timeout_s, max_retries=0
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def probe(self, model: str, messages: Sequence[Message]) -> None:
        """One request of a few tokens, tried once: does the server answer with this key, this model and an image?

        Raises:
            ServerUnavailable: if it does not answer, or only with a failure of its own.
            ServerRefuses: if it refuses; the error names the models that it says it has.
        """
        address = self.endpoint.address
        try:
            await self._request(model, messages, max_tokens=_PROBE_TOKENS, temperature=0.0)
        except Transient as error:
            if error.status != 429:  # 429 comes from a server that is there
                raise ServerUnavailable(
                    f"the server at {address} does not answer ({error}): start it, correct --base-url, or raise "
                    "--timeout for a model that it has to load first"
                ) from None
        except (ServerRefuses, RequestRefused) as error:
            models = await self._models()
            has = f"; it says it has {models}" if models else ""
            raise ServerRefuses(
                f"the server at {address} refuses a question with an image to model {model!r} ({error}){has}: check "
                "--base-url, --model and the key, that the model takes images, and --extra"
            ) from None
        self._probe = (model, messages)

    async def ask(self, model: str, messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Reply:
        """One answer.

        Raises:
            RequestRefused: if the server refuses this request (400, 413, 422, ...).
            RequestFailed: if only this request fails, ``endpoint.attempts`` times.
            ServerRefuses: if the key, the address or the model is wrong (401, 403, 404, 405).
            ServerUnavailable: if the server answered nothing for ``endpoint.patience_s``, or asks for a longer pause.
        """
        retries = Retries(self.endpoint, self._server, self._heartbeat, self._back_off_s)
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=retries.wait,
            after=retries.after,
            stop=retries.stop,
            before_sleep=retries.before_sleep,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return await attempts(self._request_when_welcome, model, messages, max_tokens, temperature)
        except Transient as error:
            raise retries.verdict or error from None

    async def _request_when_welcome(
        self, model: str, messages: Sequence[Message], max_tokens: int, temperature: float
    ) -> Reply:
        while (wait := self._server.resume_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        reply = await self._request(model, messages, max_tokens=max_tokens, temperature=temperature)
        self._server.answered_at = time.monotonic()
        if self._server.down:
            self._server.down = False
            _LOG.warning("server %s: answers again", self.endpoint.address)
        return reply

    async def _heartbeat(self) -> bool:
        if self._probe is None:
            return False
        try:
            await self._request(*self._probe, max_tokens=_PROBE_TOKENS, temperature=0.0)
        except (Transient, ServerRefuses, RequestRefused):
            return False
        self._server.answered_at = time.monotonic()
        return True

    async def _request(self, model: str, messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Reply:
        body = {"max_tokens": max_tokens, "temperature": temperature, **self._extra}
        body = {name: value for name, value in body.items() if value is not None}
        turns: Any = list(messages)
        try:
            # The library's own timeout is one per read: a server that drips bytes would hold a request for ever.
            completion = await asyncio.wait_for(
                self._client.chat.completions.create(model=model, messages=turns, extra_body=body),
                self.endpoint.timeout_s,
            )
            return _reply(completion, self.endpoint)
        except (openai.APITimeoutError, asyncio.TimeoutError):
            raise Transient(f"no answer within {self.endpoint.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise Transient(self._shown(f"no connection: {error.__cause__ or error}")) from None
        except openai.APIStatusError as error:
            raise self._from_status(error) from None
        except (openai.APIError, json.JSONDecodeError, UnicodeDecodeError, _Malformed) as error:
            raise Transient(self._shown(f"malformed answer: {error}")) from None

    def _from_status(self, error: openai.APIStatusError) -> Exception:
        reason = self._shown(f"status {error.status_code}: {error.message}")
        if error.status_code in _MISCONFIGURED:
            return ServerRefuses(reason)
        if error.status_code in _TRANSIENT or error.status_code >= 500:
            return Transient(reason, _retry_after(error.response.headers), error.status_code)
        return RequestRefused(reason)

    def _shown(self, text: str) -> str:
        text = self.endpoint.scrub(" ".join(text.split()))  # before it is cut: half a key would stay
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    async def _models(self) -> list[str]:
        """What the server says it has; nothing if it does not say."""
        try:
            page = await asyncio.wait_for(self._client.models.list(), self.endpoint.timeout_s)
            return [model.id for model in page.data][:20]
        except Exception:  # some servers list what they could load, some fail: it must not hide the refusal
            return []


class _Malformed(ValueError):
    """An answer that is no completion."""


def _reply(completion: Any, endpoint: Endpoint) -> Reply:
    # The library does not validate: what comes back may lack any field, or be the bare text of a body.
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise _Malformed(f"no choices in {str(completion)!r}")
    message = getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    if message is None or not isinstance(text, str | None):
        raise _Malformed(f"no text in {str(choices[0])!r}")
    usage = getattr(completion, "usage", None)
    text = _THOUGHTS.sub("", text or "").strip()
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair can be neither written nor sent
    return Reply(
        text=endpoint.scrub(text),
        finished=getattr(choices[0], "finish_reason", None) != "length",
        tokens_in=_count(usage, "prompt_tokens"),
        tokens_out=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header: a number or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
