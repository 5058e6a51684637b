"""Where the VLM is, what it answers, and the ways in which it may not."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

NO_KEY = "none"
"""Sent where there is no key: local servers want none, the client library wants one."""

HIDDEN = "<key>"
"""Stands for the key wherever text of the server is shown or kept."""

_SECRET = 8  # characters; shorter keys are words such as "EMPTY", which answers may hold


class LabellingError(RuntimeError):
    """Labelling cannot start or go on; what has been answered is kept."""


class ServerUnavailable(LabellingError):
    """The server does not answer: at the start at once, later after having been waited for."""


class ServerRefuses(LabellingError):
    """The server answers, but not us: the key, the address or the model is wrong."""


class RequestRefused(ValueError):
    """The server refuses a request (too long, not an image it can read, against its policy)."""


class RequestFailed(ValueError):
    """A request fails again and again while the server answers others."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        base_url: up to the version, such as ``http://127.0.0.1:8000/v1``.
        key: sent as the bearer token; shown nowhere, neither by ``repr``.
        timeout_s: for one answer, connecting to last byte.
        attempts: for a request that fails while the server answers others.
        patience_s: for how long a server that answers nothing is waited for.

    Raises:
        ValueError: for an address that is none or holds credentials or a query, or a key that no header can hold.
    """

    base_url: str
    key: str = field(default=NO_KEY, repr=False)
    timeout_s: float = 120.0
    attempts: int = 6
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        # The messages must not repeat an address that holds a secret.
        if any(mark in self.base_url for mark in "@?#"):
            raise ValueError(
                "the base URL holds a user name, a password or a query: give the key in OPENAI_API_KEY (JUDGE_API_KEY) "
                "in their place"
            )
        try:
            parts = urlsplit(self.base_url)
            known = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        except ValueError:  # of a port or an IPv6 address
            known = False
        if not known:
            raise ValueError(f"the base URL must be like http://127.0.0.1:8000/v1, found {self.base_url!r}")
        if not self.key or not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise ValueError("the key is empty, or holds spaces or characters outside ASCII: was it copied whole?")
        for name in ("timeout_s", "attempts", "patience_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")

    @property
    def address(self) -> str:
        """Host and port, to be shown: more of the URL may be nobody else's business."""
        return urlsplit(self.base_url).netloc

    def scrub(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        return text if len(self.key) < _SECRET else text.replace(self.key, HIDDEN)


@dataclass(frozen=True)
class Reply:
    """One answer of the server.

    Attributes:
        text: without surrounding space and without the model's thoughts (``<think>``).
        finished: ``False`` if it was cut off at the limit of tokens.
        tokens_in: of the request, as the server counts them; ``None`` if it does not say.
        tokens_out: of the answer, likewise.
    """

    text: str
    finished: bool
    tokens_in: int | None
    tokens_out: int | None
