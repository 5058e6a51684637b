"""When a request is tried again, how long it waits, and when it is given up."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable

import tenacity

from navsim_recogdrive.pretraining.labelling.endpoint import (
    Endpoint,
    LabellingError,
    RequestFailed,
    ServerUnavailable,
)

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT_S = 60.0


class Transient(Exception):
    """A failure that may pass; ``wait_s`` is what the server asks for, in seconds, ``status`` its HTTP status."""

    def __init__(self, reason: str, wait_s: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.status = status


class ServerState:
    """What all requests to one server know of it: when it answered last, and until when it asked to be left alone."""

    def __init__(self) -> None:
        self.answered_at = time.monotonic()
        self.resume_at = 0.0
        self.down = False


class Retries:
    """One request's strategy for ``tenacity.AsyncRetrying``: ``wait``, ``after``, ``stop`` and ``before_sleep``.

    After ``endpoint.attempts`` failures the server's own state decides. If it answers others, or the ``heartbeat`` (a
    request that it has answered before), the fault is this request's and it is given up. Else the server is down, and
    the request goes on until ``endpoint.patience_s`` have passed since its last answer.

    Args:
        endpoint: the limits.
        server: the server's state, shared by all its requests.
        heartbeat: asks the server something that it can answer; ``True`` if it does.
        back_off_s: the first wait; it doubles up to a minute.
    """

    def __init__(
        self, endpoint: Endpoint, server: ServerState, heartbeat: Callable[[], Awaitable[bool]], back_off_s: float
    ) -> None:
        self._endpoint = endpoint
        self._server = server
        self._heartbeat = heartbeat
        self._back_off_s = back_off_s
        self._begun = self._failed_at = time.monotonic()
        self.verdict: LabellingError | RequestFailed | None = None
        """Why the request was given up."""

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt; a wait that the server asks for is put upon all of its requests."""
        asked = _failure(state).wait_s
        if asked is not None:
            self._server.resume_at = max(self._server.resume_at, time.monotonic() + asked)
            return random.uniform(0.0, self._back_off_s)  # not all at the same moment
        longest = min(_LONGEST_WAIT_S, self._back_off_s * 2.0 ** min(state.attempt_number - 1, 10))
        return random.uniform(longest / 2, longest)

    def stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give up."""
        return self.verdict is not None

    async def after(self, state: tenacity.RetryCallState) -> None:
        """Judge a failed attempt; sets :attr:`verdict` if there is to be no other."""
        failure = _failure(state)
        address, patience = self._endpoint.address, self._endpoint.patience_s
        answered_since = self._server.answered_at > self._failed_at
        self._failed_at = time.monotonic()
        if failure.wait_s is not None and failure.wait_s > patience:
            self.verdict = ServerUnavailable(
                f"the server at {address} asks to wait {failure.wait_s:.0f} s, longer than the patience of "
                f"{patience:g} s ({failure})"
            )
        elif (
            failure.status != 429  # too many requests: never the fault of one
            and state.attempt_number >= self._endpoint.attempts
            and (answered_since or await self._heartbeat())
        ):
            self.verdict = RequestFailed(f"{failure}; {state.attempt_number} attempts")
        elif time.monotonic() - max(self._server.answered_at, self._begun) >= patience:
            self.verdict = ServerUnavailable(
                f"the server at {address} has answered nothing for {patience:g} s ({failure}); all answers up to here "
                "are kept, the same command continues"
            )

    def before_sleep(self, state: tenacity.RetryCallState) -> None:
        """Say once that the server is waited for."""
        if not self._server.down:
            self._server.down = True
            _LOG.warning("server %s: %s; trying again", self._endpoint.address, _failure(state))


def _failure(state: tenacity.RetryCallState) -> Transient:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, Transient)  # the only error that is tried again
    return error
