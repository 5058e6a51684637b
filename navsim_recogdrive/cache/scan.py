"""Is a feature cache whole? What a killed or failed caching run leaves behind, found and removed.

NAVSIM writes the files of a scene one after the other, straight to their final names, and counts a scene as cached once
all are there. So a killed run leaves a file that is cut off. In an empty cache the scene's later files are then
missing, and NAVSIM computes the scene again. But the last of the files, or one that ``force_cache_computation=true``
was writing over an older one, is taken for whole, and training fails on it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from navsim_recogdrive.cache.failed import ADVICE, FAILED_MAGIC, FailedFeatureRead
from navsim_recogdrive.cache.hidden_state import UNKNOWN_ORIGIN
from navsim_recogdrive.cache.identity import FOLDER, CacheIdentity
from navsim_recogdrive.cache.peek import cached_logs, check_size, peek_hidden_state, read_content, stated_size
from navsim_recogdrive.cache.runs import claimed_scenes
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.cache.unpickling import load_feature

logger = logging.getLogger(__name__)

DAMAGED, FAILED, FOREIGN, PARTIAL, LEFT_OUT = "damaged", "failed", "foreign", "partial", "left out"
"""Kinds of findings: not whole; says that it could not be computed; of another VLM; a writer's unfinished file; says
that it could not be computed, and is kept by a run in progress, which removes it when it ends."""

SETTLE_S = 30.0
"""A file that changed less than this many seconds ago may still be being written by another process."""

_UNFINISHED = ".partial"
_SMALL_BYTES = 1 << 16
# Before gzip, a large file of image tiles has about as many bytes as after it: they are compressed images.
_EXPANSION = (0.9, 4.0)
_POLL_S = 0.5


@dataclass(frozen=True)
class Layout:
    """The files of a complete scene.

    Attributes:
        files: their names in the order in which they are written.
        hidden_state: the one among them that holds a hidden state, if any.
        training_only: the one among them that a scene cached for evaluation lacks, if any.
    """

    files: tuple[str, ...]
    hidden_state: str | None = None
    training_only: str | None = None

    def for_evaluation(self) -> Layout:
        """The same without the file that only training needs."""
        return Layout(tuple(name for name in self.files if name != self.training_only), self.hidden_state)


@dataclass(frozen=True)
class Finding:
    """One file that must not be used.

    Attributes:
        path: the file.
        kind: :data:`DAMAGED`, :data:`FAILED`, :data:`FOREIGN`, :data:`PARTIAL` or :data:`LEFT_OUT`.
        reason: what is wrong with it.
        modified_ns: when it was last written, as far as its scan saw.
    """

    path: Path
    kind: str
    reason: str
    modified_ns: int

    @property
    def scene(self) -> str:
        """``LOG/TOKEN``."""
        return "/".join(self.path.parts[-3:-1])


@dataclass
class ScanReport:
    """What a scan found.

    Attributes:
        scenes: complete scenes without a finding.
        incomplete: folders of scenes that lack a file; NAVSIM computes these again, and training leaves them out.
        evaluation_only: folders of scenes that lack nothing but what only training needs; training leaves them out.
        findings: files that must not be used.
        file_bytes: bytes of all files, by file name.
        states: how many hidden states there are, by (mode, rows, columns).
        origins: how many of them there are of each mark of what computed them; those without a mark are not counted.
        loose: files in the cache's root, at which NAVSIM's ``Dataset`` stops with an error.
    """

    scenes: int = 0
    incomplete: list[Path] = field(default_factory=list)
    evaluation_only: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    file_bytes: Counter[str] = field(default_factory=Counter)
    states: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    origins: Counter[bytes] = field(default_factory=Counter)
    loose: list[Path] = field(default_factory=list)

    @property
    def misleading(self) -> list[Finding]:
        """Findings in scenes that NAVSIM takes for complete, and would train on or evaluate from."""
        incomplete = set(self.incomplete)
        return [one for one in self.findings if one.kind != PARTIAL and one.path.parent not in incomplete]

    def add(self, other: ScanReport) -> None:
        """Add what was found elsewhere."""
        self.scenes += other.scenes
        self.incomplete += other.incomplete
        self.evaluation_only += other.evaluation_only
        self.findings += other.findings
        self.file_bytes += other.file_bytes
        self.states += other.states
        self.origins += other.origins
        self.loose += other.loose


def scan_cache(
    root: Path,
    layout: Layout,
    logs: Iterable[str] | None = None,
    *,
    full: bool = False,
    identity: CacheIdentity | None = None,
    workers: int = 8,
    progress: bool = False,
) -> ScanReport:
    """Look through a cache; changes nothing. What another process removes meanwhile is left out.

    The quick scan reads files of up to 64 KB whole, and of a larger hidden state the first 4 KB and the last 4 bytes,
    which tell if it was cut off. Of other larger files, those with image tiles, it reads the last 4 bytes, and all of
    one where they say an unlikely size, or that was written after the scene's last file: of those that were cut off
    it misses about one in a thousand. The full scan reads and decodes everything, so it finds flipped bits too.

    Args:
        root: of the cache.
        layout: the files of a scene.
        logs: only these logs; ``None``: all.
        full: see above.
        identity: hidden states with the mark of another origin are findings; ``None``: they are not compared.
        workers: threads; reading and decompressing run beside each other.
        progress: show a progress bar.
    """
    report = ScanReport(loose=loose_files(root))
    # Only this package's writers give such a name; the other files are somebody's, and not to be removed.
    for path in [*report.loose, *(Path(entry.path) for entry in _entries(root / FOLDER))]:
        if path.name.endswith(_UNFINISHED) and (modified_ns := _modified_ns(path)) is not None:
            report.findings.append(Finding(path, PARTIAL, f"{path} is unfinished", modified_ns))
    folders = cached_logs(root, logs)

    def scan_log(folder: Path) -> ScanReport:
        result = ScanReport()
        for scene in _subfolders(folder):
            _scan_scene(scene, layout, full, identity, result)
        return result

    with ThreadPoolExecutor(max_workers=workers) as pool:
        bar = tqdm(total=len(folders), desc="Scanning the cache", unit="log", disable=not progress)
        with bar:
            for part in pool.map(scan_log, folders):
                report.add(part)
                bar.update()
    report.findings = _told_apart(root, report.findings)
    return report


def loose_files(root: Path) -> list[Path]:
    """Entries of a cache's root that are no folders, sorted; NAVSIM's ``Dataset`` takes them for logs and fails."""
    with os.scandir(root) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.is_dir())


def count_origins(root: Path, file_name: str, workers: int = 8) -> Counter[bytes]:
    """How many hidden states of a cache there are of each mark of what computed them; reads 4 KB of each.

    Files without a mark, damaged ones and those that vanish meanwhile are not counted.

    Args:
        root: of the cache.
        file_name: of a scene's hidden state, with its ending.
        workers: threads.
    """

    def count_log(folder: Path) -> Counter[bytes]:
        found: Counter[bytes] = Counter()
        for scene in _subfolders(folder):
            try:
                found[peek_hidden_state(scene / file_name).origin] += 1
            except DamagedFeature:
                continue
        return found

    with ThreadPoolExecutor(max_workers=workers) as pool:
        counts = sum(pool.map(count_log, cached_logs(root, None)), Counter[bytes]())
    del counts[UNKNOWN_ORIGIN]
    return counts


def remove(findings: Sequence[Finding], settle_s: float = SETTLE_S) -> list[Finding]:
    """Delete the files of ``findings``, so that the next caching run computes their scenes again.

    A file that was written just now may belong to a process that is writing it: it is given ``settle_s`` seconds, and
    left alone if it changes. (Its age by this machine's clock is not enough: a file server's may be another.)

    Those of runs in progress (:data:`LEFT_OUT`) are theirs to delete.

    Returns:
        The findings whose files were deleted.
    """
    findings = [finding for finding in findings if finding.kind != LEFT_OUT]
    start = time.time()
    waiting = [
        finding
        for finding in findings
        # The others are whole files, which nobody is writing.
        if finding.kind in (DAMAGED, PARTIAL) and abs(start - finding.modified_ns / 1e9) < settle_s
    ]
    removed = [finding for finding in findings if finding not in waiting and _remove(finding)]
    if waiting:
        logger.info(
            "%d damaged files are less than %.0f s old, another process may be writing them (the first is %s): waiting",
            len(waiting),
            settle_s,
            waiting[0].path,
        )
    while waiting and time.time() - start < settle_s:
        time.sleep(min(_POLL_S, settle_s))
        waiting = [finding for finding in waiting if _unchanged(finding)]
    return removed + [finding for finding in waiting if _remove(finding)]


def _told_apart(root: Path, findings: list[Finding]) -> list[Finding]:
    """``findings`` with the failed features that belong to runs in progress as :data:`LEFT_OUT`."""
    if not any(finding.kind == FAILED for finding in findings):
        return findings
    claimed = claimed_scenes(root)  # now: a run claims a scene before it writes failed features there
    advice = "; a run in progress leaves the scene out, and removes this file when it ends"
    return [
        replace(one, kind=LEFT_OUT, reason=one.reason.removesuffix(ADVICE) + advice)
        if one.kind == FAILED and one.scene in claimed
        else one
        for one in findings
    ]


def _remove(finding: Finding) -> bool:
    if not _unchanged(finding):
        return False
    finding.path.unlink(missing_ok=True)
    return True


def _unchanged(finding: Finding) -> bool:
    return _modified_ns(finding.path) == finding.modified_ns


def _modified_ns(path: Path) -> int | None:
    """When a file was last written; ``None`` if it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if it is gone."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _scan_scene(folder: Path, layout: Layout, full: bool, identity: CacheIdentity | None, report: ScanReport) -> None:
    names = {f"{name}.gz": name for name in layout.files}
    found: dict[str, os.stat_result] = {}
    findings = []
    for entry in _entries(folder):
        try:
            if entry.name in names:
                found[entry.name] = entry.stat()
            elif entry.name.endswith(_UNFINISHED):
                reason = f"{entry.path} is unfinished"
                findings.append(Finding(Path(entry.path), PARTIAL, reason, entry.stat().st_mtime_ns))
        except FileNotFoundError:  # renamed or removed by the process that wrote it
            continue
    last = found.get(f"{layout.files[-1]}.gz")
    for name, stat in list(found.items()):
        report.file_bytes[names[name]] += stat.st_size
        path = folder / name
        whole = last is None or stat.st_mtime_ns > last.st_mtime_ns
        try:
            if names[name] == layout.hidden_state:
                _check_hidden_state(path, stat.st_size, full, identity, report)
            else:
                _check_file(path, stat.st_size, full, whole)
        except FailedFeatureRead as error:
            findings.append(Finding(path, FAILED, str(error), stat.st_mtime_ns))
        except _Foreign as error:
            findings.append(Finding(path, FOREIGN, str(error), stat.st_mtime_ns))
        except (DamagedFeature, OSError) as error:
            if _modified_ns(path) is None:
                del found[name]
                report.file_bytes[names[name]] -= stat.st_size
            else:
                findings.append(Finding(path, DAMAGED, str(error), stat.st_mtime_ns))
    report.findings += findings
    lacking = [name for name in names if name not in found]
    if lacking == [f"{layout.training_only}.gz"]:
        report.evaluation_only.append(folder)
    elif lacking:
        if found:
            report.incomplete.append(folder)
    elif not any(finding.kind != PARTIAL for finding in findings):
        report.scenes += 1


class _Foreign(ValueError):
    """A hidden state of another origin."""


def _check_file(path: Path, size: int, full: bool, whole: bool) -> None:
    if not (full or whole or size <= _SMALL_BYTES):
        smallest, largest = _EXPANSION
        if smallest * size <= stated_size(path) <= largest * size:
            return
    content = read_content(path)
    refuse_failed(path, content)
    if full:
        load_feature(content, path)


def _check_hidden_state(path: Path, size: int, full: bool, identity: CacheIdentity | None, report: ScanReport) -> None:
    if full or size <= _SMALL_BYTES:
        _check_file(path, size, full, whole=True)
    head = peek_hidden_state(path)
    check_size(path, head)
    report.states[head.info.mode, head.info.length, head.info.features] += 1
    if head.origin != UNKNOWN_ORIGIN:
        report.origins[head.origin] += 1
    if identity is not None and head.origin not in (identity.origin, UNKNOWN_ORIGIN):
        raise _Foreign(
            f"{path} is of another VLM or prompt than the cache (origin {head.origin.hex()}, expected "
            f"{identity.origin.hex()})"
        )


def refuse_failed(path: Path, content: bytes) -> None:
    """Make sure that the content of a cache file is not a failed feature.

    Raises:
        FailedFeatureRead: if it is one, with the file and the reason.
    """
    if FAILED_MAGIC in content:
        load_feature(content, path)
