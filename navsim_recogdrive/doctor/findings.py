"""What a check found, and the report of all of them as text or JSON."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARNING, ERROR = "ok", "warning", "error"
"""Statuses of a finding: as it should be; works, or only some stages need it; will fail."""

SCHEMA = 1
"""Version of the JSON report; raised when a key changes its meaning or goes."""

_LISTED = 3


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        check: ``SUBJECT.NAME``, the same in every run, for scripts to select by.
        status: :data:`OK`, :data:`WARNING` or :data:`ERROR`.
        found: a sentence: what was found against what is expected.
        fix: a command or setting; empty where there is nothing to do.
    """

    check: str
    status: str
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """A finding that all is well."""
    return Finding(check, OK, found)


def warning(check: str, found: str, fix: str) -> Finding:
    """A finding that does not stop the stage."""
    return Finding(check, WARNING, found, fix)


def error(check: str, found: str, fix: str) -> Finding:
    """A finding that stops the stage."""
    return Finding(check, ERROR, found, fix)


def count(findings: Sequence[Finding], status: str) -> int:
    """Number of findings with a status."""
    return sum(finding.status == status for finding in findings)


def exit_status(findings: Sequence[Finding]) -> int:
    """1 if there is an error, else 0."""
    return int(count(findings, ERROR) > 0)


def listing(names: Sequence[object]) -> str:
    """The first few of ``names``, and how many more there are."""
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(str, names[:_LISTED])) + rest


def size(count: float) -> str:
    """Bytes for people, in powers of ten as disks and GPUs are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def as_json(findings: Sequence[Finding], request: dict[str, Any], version: str) -> str:
    """The report for programs.

    Keys: ``schema`` (:data:`SCHEMA`), ``version`` of the package, ``request`` (what was asked for, with defaults),
    ``errors`` and ``warnings`` (counts), ``exit_status``, and ``findings``: a list of objects with the keys ``check``,
    ``status``, ``found`` and ``fix`` of :class:`Finding`.
    """
    content = {
        "schema": SCHEMA,
        "version": version,
        "request": request,
        "errors": count(findings, ERROR),
        "warnings": count(findings, WARNING),
        "exit_status": exit_status(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=2)


def as_text(findings: Sequence[Finding], width: int, colour: bool = False) -> str:
    """The report for people: one paragraph per finding, and a line that counts."""
    codes = {OK: "32", WARNING: "33", ERROR: "31"}
    lines = []
    for finding in findings:
        mark = f"{finding.status:8}"
        body = _paragraph(f"{finding.check}: {finding.found}", width)
        fix = _paragraph(f"fix: {finding.fix}", width) if finding.fix else []
        lines.append((f"\033[{codes[finding.status]}m{mark}\033[0m" if colour else mark) + body[0])
        lines += [" " * len(mark) + line for line in (*body[1:], *fix)]
    lines.append(f"{count(findings, ERROR)} errors, {count(findings, WARNING)} warnings, {count(findings, OK)} ok")
    return "\n".join(lines) + os.linesep


def _paragraph(text: str, width: int) -> list[str]:
    lines = []
    for line in text.splitlines() or [""]:
        # Paths and commands are for copying: they are never broken.
        lines += textwrap.wrap(
            line, max(40, width - 8), break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
        ) or [""]
    return lines
