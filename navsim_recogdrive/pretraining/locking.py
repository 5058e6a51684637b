"""One process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InUse(RuntimeError):
    """Another process is at work on the same file."""


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Keep other processes from ``path`` through ``path.lock`` beside it, which is removed at the end.

    The lock is this process's alone, not its children's, and ends with it however it ends: a file that a killed process
    left locks nobody out. A file system without locks locks nobody out either.

    Raises:
        InUse: if another process has the lock.
        OSError: if the file cannot be made.
    """
    lock = path.with_name(path.name + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # either may mean that it is taken
                raise InUse(
                    f"{path} is being written by another process: wait for it, or write to another file"
                ) from None
            except OSError:
                pass
            if not _is_still(lock, descriptor):
                continue  # another process ended, and removed the file, between the two calls
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
