"""Metric caches of NAVSIM's ``run_metric_caching.py``: where they lie, whether they fit, the last used in memory.

A metric cache is made per scene and NAVSIM version; its table of contents is a csv of absolute paths.
"""

from __future__ import annotations

import csv
import gc
import logging
import lzma
import math
import os
import pickle
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeVar

from navsim_recogdrive.agents.compat_pdm import NAVSIM_NAME, MetricCache, why_unfit

_log = logging.getLogger(__name__)

SAMPLES = 500
"""Metric caches that are read whole before training."""

_THREADS = 16  # opening files waits for the disk, not for a core
_SECONDS_OF_SILENCE = 5.0
_HEAD, _TAIL = b"\xfd7zXZ\x00", b"YZ"  # of a complete .xz file, which NAVSIM writes
_NAMED = 10  # tokens and files named in a message
_LOOKED_AT = 50  # files that are looked for before a folder is taken for one whose files are elsewhere
_SCRIPT = "scripts/cache_dataset/run_metric_caching_train.sh"
_MAKE_IT = f"make it with NAVSIM's run_metric_caching.py ({_SCRIPT})"

MAKE_AGAIN = f"delete the file, then run {_SCRIPT} again: it keeps every file that exists"
"""How to replace a metric cache: the runner takes a file that is there for a good one."""

T = TypeVar("T")


class UnusableMetricCache(ValueError):
    """A folder of metric caches that cannot be used, or one of its files; the message says why and what to do."""


class OtherNavsimVersion(UnusableMetricCache):
    """A metric cache that another version of NAVSIM made: so are the others of its folder, most likely."""


class MetricCacheFolder:
    """The files of a metric cache folder by scene token.

    Args:
        root: folder that was ``metric_cache_path`` (v1.1: ``cache.cache_path``) of ``run_metric_caching.py``. It may
            have been moved or copied since: a file is first looked for in ``root``, then where the table says.

    Raises:
        UnusableMetricCache: there is no folder, no table, an empty one, or one of whose files none is there.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UnusableMetricCache(f"no metric cache folder {self.root}: {_MAKE_IT}")
        tables = sorted((self.root / "metadata").glob("*.csv"))
        if not tables:
            raise UnusableMetricCache(
                f"{self.root} has no metadata/*.csv, which run_metric_caching.py writes at its end: it is no metric "
                f"cache, or the run was interrupted; {_MAKE_IT}"
            )
        # One table per node that took part; the first row is the column's name.
        rows = [row for table in tables for row in list(csv.reader(table.read_text().splitlines()))[1:]]
        self._paths = {Path(row[0]).parent.name: Path(row[0]) for row in rows if row}
        if not self._paths:
            raise UnusableMetricCache(f"the tables in {self.root / 'metadata'} name no file: {_MAKE_IT}")
        self._check_that_some_are_there()

    def _check_that_some_are_there(self) -> None:
        tokens = self.tokens[:: math.ceil(len(self._paths) / _LOOKED_AT)]  # of all logs: some may have been deleted
        if not any(os.path.isfile(self._path(token)) for token in tokens):
            first = self._paths[tokens[0]]
            others = f", nor any of {len(tokens) - 1} others" if tokens[1:] else ""
            raise UnusableMetricCache(
                f"the metric cache {self.root} says that {first} exists, but it does not{others}, there or in "
                f"{self.root}: put the folder back, move it with its subfolders, or {_MAKE_IT}"
            )

    def _path(self, token: str) -> Path:
        """Where a file is: in this folder, though the table of a copy names the original's; else where that says."""
        said = self._paths[token]
        here = self.root.joinpath(*said.parts[-4:])
        return here if here != said and os.path.isfile(here) else said

    @property
    def tokens(self) -> list[str]:
        """All scenes of the table."""
        return list(self._paths)

    def missing_tokens(self, tokens: Iterable[str], *, as_navsim: bool = False) -> list[str]:
        """Those of ``tokens`` that have no metric cache, or one whose file is absent or empty; in order.

        Args:
            tokens: of scenes.
            as_navsim: look only where NAVSIM's own loader does: where the table says, though the folder was moved.
        """
        return [token for token in tokens if not self._is_there(token, as_navsim)]

    def _is_there(self, token: str, as_navsim: bool) -> bool:
        try:
            path = self._paths[token] if as_navsim else self._path(token)
            return path.stat().st_size > 0
        except KeyError:
            return False
        except OSError:
            return False

    def read(self, token: str) -> MetricCache:
        """The metric cache of a scene.

        Raises:
            KeyError: the table does not have the scene.
            OtherNavsimVersion: the file was made by another version of NAVSIM.
            UnusableMetricCache: it cannot be read.
        """
        if token not in self._paths:
            raise KeyError(f"scene {token} has no metric cache in {self.root}")
        path = self._path(token)
        try:
            content = lzma.decompress(path.read_bytes())
        except (OSError, lzma.LZMAError) as error:
            raise UnusableMetricCache(f"the metric cache {path} cannot be read ({error}): {MAKE_AGAIN}") from error
        try:
            with _no_garbage_collection():
                cache = pickle.loads(content)
        except Exception as error:
            raise OtherNavsimVersion(self._other_version(path, f"{type(error).__name__}: {error}")) from error
        reason = why_unfit(cache)
        if reason:
            raise OtherNavsimVersion(self._other_version(path, reason))
        return cache

    def _other_version(self, path: Path, reason: str) -> str:
        newer_numpy = " (written with numpy 2: read it with numpy 1.26.4 or newer)" if "numpy._core" in reason else ""
        return (
            f"the metric cache {path} does not fit the installed NAVSIM {NAVSIM_NAME}: {reason}{newer_numpy}. Metric "
            f"caches cannot be shared between versions: install the NAVSIM that made {self.root}, or make others in "
            f"another folder (METRIC_CACHE_PATH=FOLDER bash {_SCRIPT}; files that exist are kept, whoever made them)"
        )

    def check(self, tokens: Sequence[str], samples: int = SAMPLES) -> None:
        """Refuse a folder of another NAVSIM version, and files that cannot be read, before anything is scored.

        Args:
            tokens: as in :meth:`unusable`, which looks.
            samples: likewise.

        Raises:
            UnusableMetricCache: one of them cannot be used.
        """
        faulty = self.unusable(tokens, samples)
        if faulty:
            raise UnusableMetricCache(
                f"{self.describe_unusable(faulty, len(tokens))}. Give this user the right to read them, or {MAKE_AGAIN}"
            )

    def describe_unusable(self, faulty: Mapping[str, str], of: int) -> str:
        """A sentence that counts what :meth:`unusable` found among ``of`` scenes, says why of the first, lists some."""
        first, *others = faulty
        rest = f" and {len(others) - _NAMED + 1} more" if len(others) >= _NAMED else ""
        listed = f"; and those of {', '.join(others[: _NAMED - 1])}{rest}" if others else ""
        return f"{len(faulty)} of {of} metric caches in {self.root} cannot be read: {faulty[first]}{listed}"

    def unusable(self, tokens: Sequence[str], samples: int = SAMPLES) -> dict[str, str]:
        """Look for files that cannot be read.

        Every file is opened, and its first and last bytes are looked at: that finds files without permission, of
        another kind, and cut short. Which NAVSIM made a file is only known once it is read whole, which takes tens of
        milliseconds each and hours for navtrain, so that is done with some: with all if there are no more than
        ``samples``. What takes more than a few seconds says how far it is.

        Args:
            tokens: scenes that are going to be scored; those that are missing are not looked at.
            samples: how many of them to read, drawn from all logs alike, and the same ones every time.

        Returns:
            What is wrong, by token.

        Raises:
            OtherNavsimVersion: one of them was made by another version of NAVSIM.
        """
        there = [token for token in tokens if token in self._paths]
        with ThreadPoolExecutor(_THREADS) as threads:
            faults = list(_with_progress(threads.map(self._fault, there), len(there), "opened"))
        faulty = {token: fault for token, fault in zip(there, faults, strict=True) if fault}
        drawn = self._draw([token for token in there if token not in faulty], samples)
        for token in _with_progress(drawn, len(drawn), "read"):
            try:
                self.read(token)
            except OtherNavsimVersion:
                raise
            except UnusableMetricCache as error:
                faulty[token] = f"{self._path(token)} ({error.__cause__})"
        return faulty

    def _fault(self, token: str) -> str | None:
        """What the ends of a file say against it."""
        path = self._path(token)
        try:
            with path.open("rb") as file:
                head = file.read(len(_HEAD))
                file.seek(-min(len(_TAIL), file.seek(0, os.SEEK_END)), os.SEEK_END)
                tail = file.read()
        except OSError as error:
            return f"{path} ({error.strerror or error})"
        if head != _HEAD:
            return f"{path} (it does not begin as a metric cache does)"
        return None if tail == _TAIL else f"{path} (its end is missing)"

    def _draw(self, tokens: Sequence[str], samples: int) -> list[str]:
        """Some of ``tokens``: of each log in turn one drawn by chance, with a fixed seed, until there are enough."""
        by_log: dict[str, list[str]] = {}
        for token in tokens:
            by_log.setdefault(self._paths[token].parts[-4], []).append(token)
        chance = random.Random(0)
        logs = [chance.sample(of_log, len(of_log)) for of_log in by_log.values()]
        chance.shuffle(logs)
        rounds = zip_longest(*logs)
        return list(islice((token for turn in rounds for token in turn if token is not None), samples))


def _with_progress(items: Iterable[T], total: int, done: str) -> Iterator[T]:
    said = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - said > _SECONDS_OF_SILENCE:
            said = time.monotonic()
            _log.info("metric caches %s: %d of %d", done, number, total)
        yield item


def describe_missing(missing: Sequence[str], of: int, root: Path) -> str:
    """A sentence that counts and lists scenes without a metric cache."""
    named = ", ".join(missing[:_NAMED])
    rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"{len(missing)} of {of} scenes have no metric cache in {root}: {named}{rest}"


class SceneMemory:
    """The last used metric caches, decompressed.

    Args:
        folder: where they come from.
        capacity: how many to keep; the one not used for the longest time goes first. A scene of 20 road users takes
            2.6 MB.
        prepare: what to do once with a cache just read.
    """

    def __init__(self, folder: MetricCacheFolder, capacity: int, prepare: Callable[[MetricCache], None]) -> None:
        if capacity < 1:
            raise ValueError(f"the number of scenes kept in memory must be at least 1, found {capacity}")
        self._folder = folder
        self._capacity = capacity
        self._prepare = prepare
        self._kept: OrderedDict[str, MetricCache] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, token: str) -> MetricCache:
        """The prepared metric cache of a scene, from memory or from disk; errors as :meth:`MetricCacheFolder.read`."""
        if token in self._kept:
            self._kept.move_to_end(token)
            return self._kept[token]
        cache = self._folder.read(token)
        self._prepare(cache)
        self._kept[token] = cache
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return cache


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Unpickling makes tens of thousands of objects; searching them for garbage meanwhile doubles its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
