"""What all cached features share: one way of saying that they are damaged, and in which file."""

from __future__ import annotations

import gzip
import sys

_FRAMES = 20  # looked through for the file being read


class DamagedFeature(ValueError):
    """A cached feature that cannot be trusted: unknown version, unreadable, or a checksum that does not match."""


class DamagedHiddenState(DamagedFeature):
    """A cached hidden state that cannot be trusted: unknown version, wrong size, or a checksum that does not match."""


def check_stored(error: type[DamagedFeature], what: str, version: int, expected: int, intact: bool) -> None:
    """Refuse content of another format version or with a wrong checksum.

    Raises:
        DamagedFeature: ``error``, naming the file where it is known and saying what to do.
    """
    if version != expected:
        raise error(
            named(
                f"{what} of cache format {version}, this package reads format {expected}: "
                "written by another version of navsim-recogdrive; cache the split again"
            )
        )
    if not intact:
        raise error(named(f"{what} with a wrong checksum: the cache file is damaged; delete it and cache again"))


def named(message: str) -> str:
    """``message``, after the name of the file being unpickled where that is known."""
    path = file_being_read()
    return message if path is None else f"{path}: {message}"


def file_being_read() -> str | None:
    """The gzip file that a caller is unpickling from, in a DataLoader worker for example; ``None`` if there is none.

    What unpickles itself sees its own bytes alone, and an error in one of 100,000 files is of no use without its name.
    NAVSIM's reader holds the file in a local variable.
    """
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        for value in list(frame.f_locals.values()):
            if isinstance(value, gzip.GzipFile):
                return str(value.name) or None
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None
