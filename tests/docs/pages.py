"""The shell blocks of the Markdown pages, their commands, and the code that stands in running text."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

SHELL = "bash"
OTHER_SHELLS = ("sh", "shell", "zsh", "console", "shell-session")
_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*(\w[\w-]*)?")
_MARK = re.compile(r"^<!-- (run|not run): (.*\S) -->$")
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, its first line, its language, its text, and the mark above it.

    ``mark`` is ``run``, ``not run`` or ``None``; ``note`` what follows it: the world and variables, or the reason.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str | None
    note: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @cached_property
    def commands(self) -> list[Command]:
        """The simple commands, in order."""
        return commands_of(self.text)


@dataclass(frozen=True)
class Command:
    """A simple command: the variables set for it alone, and its words, quotes removed."""

    variables: tuple[str, ...]
    words: tuple[str, ...]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, whatever the language."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        start = number
        number += 1
        while number < len(lines) and not lines[number].strip().startswith(fence[2]):
            number += 1
        above = next((line.strip() for line in reversed(lines[:start]) if line.strip()), "")
        mark = _MARK.match(above)
        text = "\n".join(line.removeprefix(fence[1]) for line in lines[start + 1 : number])
        found.append(Block(page, start + 1, fence[3] or "", text, mark and mark[1], mark[2] if mark else ""))
        number += 1
    return found


def shell_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language == SHELL]


def inline_code(page: Path) -> list[str]:
    """The code spans of a page outside of fenced blocks."""
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def commands_of(text: str) -> list[Command]:
    """Simple commands of a shell text: split at operators and line ends, comments and redirections left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&\0")
        lexer.whitespace_split = True
        lexer.commenters = ""
        words: list[str] = []
        for word in [*_without_comment(lexer), ";"]:
            if not set(word) <= set("();|&"):
                words.append(word)
                continue
            variables = [word for word in words[: _leading(words)] if word]
            rest = words[len(variables) :]
            if rest or variables:
                found.append(Command(tuple(variables), tuple(_without_redirections(rest))))
            words = []
    return found


def _leading(words: list[str]) -> int:
    return next((index for index, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))


def _without_comment(lexer: shlex.shlex) -> list[str]:
    words = []
    for word in lexer:
        if word.startswith("#"):
            break
        words.append(word)
    return words


def _without_redirections(words: list[str]) -> list[str]:
    kept = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif set(word) <= set("<>&"):
            skip = True
            if kept and kept[-1] in ("1", "2"):  # a file descriptor: 2>&1
                kept.pop()
        else:
            kept.append(word)
    return kept
