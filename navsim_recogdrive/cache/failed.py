"""A feature that could not be computed, in the place of the feature.

NAVSIM's caching stops at the first scene that raises. A builder hands over a :class:`FailedFeature` instead, so that
the other scenes are cached. It must never be trained on: it raises when it is unpickled.
"""

from __future__ import annotations

from typing import Any, NoReturn

from navsim_recogdrive.cache.stored import DamagedFeature, named

FAILED_MAGIC = b"RcFailed"
"""Tells the stored form of a failed feature from any other without unpickling it."""

ADVICE = "; run python -m navsim_recogdrive.cache repair, then the caching again with force_cache_computation=false"
"""How the message of a failed feature ends."""

_REASON_CHARACTERS = 1000

MAX_STORED_BYTES = 8192
"""No cache file of a failed feature is larger."""


class FailedFeatureRead(DamagedFeature):
    """A cache file says that its feature could not be computed."""


class FailedFeature:
    """Why a feature could not be computed; small when pickled, and unpickling it raises."""

    def __init__(self, reason: str) -> None:
        self.reason = reason[:_REASON_CHARACTERS]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (FAILED_MAGIC, self.reason)


# Cache files name this function: neither its name nor its arguments may change.
def _restore(magic: bytes, reason: str) -> NoReturn:
    """Refuse to be read (called by pickle).

    Raises:
        FailedFeatureRead: always.
    """
    raise FailedFeatureRead(named(f"this scene's feature could not be computed ({reason}){ADVICE}"))
