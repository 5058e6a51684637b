"""The file of answers: one JSON line each, appended as it arrives, found again by what was asked."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from navsim_recogdrive.pretraining.labelling.endpoint import LabellingError, Reply
from navsim_recogdrive.pretraining.labelling.request import Request


class AnswerLogError(LabellingError):
    """The file cannot be used: another process writes it, it holds foreign lines, or the disk is full."""


@dataclass
class Usage:
    """What requests have cost.

    Attributes:
        requests: how many were answered.
        tokens_in: of all of them, images included as the server counts them.
        tokens_out: of their answers.
        uncounted: requests of which the server did not say the tokens.
    """

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0

    def add(self, reply: Reply) -> None:
        """Count one answer."""
        self.requests += 1
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0
        self.uncounted += reply.tokens_in is None or reply.tokens_out is None


class AnswerLog:
    """Answers by request, on disk; in memory only where each lies (about 150 bytes).

    A line is written whole or, after an error, taken back. One that a killed process left torn at the end is cut off
    when the file is opened for writing, and not seen when it is opened for reading.

    Args:
        path: the file; made if it is not there.
        writing: whether answers will be added; only one process may.

    Attributes:
        usage: by model, of all lines, earlier runs included.
        steps: number of lines by step.
        torn: bytes that were cut off at the end.

    Raises:
        AnswerLogError: if another process writes the file, or a line of it is no answer.
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: Path, writing: bool) -> None:
        self.path = path
        self.usage: dict[str, Usage] = {}
        self.steps: Counter[str] = Counter()
        self.torn = 0
        self._offsets: dict[bytes, int] = {}
        self._writing = writing
        if writing:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is with the system before the next request starts, whatever becomes of this process.
        self._file: BinaryIO = open(path, "a+b" if writing else "rb", buffering=0)  # noqa: SIM115
        try:
            if writing:
                self._lock()
            self._end = self._scan()
            if writing and self.torn:
                os.ftruncate(self._file.fileno(), self._end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def close(self) -> None:
        """Bring what was written to the disk and let go of the file."""
        if self._file.closed:
            return
        if self._writing:
            os.fsync(self._file.fileno())
        self._file.close()

    def find(self, request: Request) -> Reply | None:
        """The answer to a request, if it was answered."""
        offset = self._offsets.get(request.digest)
        if offset is None:
            return None
        line = bytearray()
        while not line.endswith(b"\n"):
            chunk = os.pread(self._file.fileno(), 4096, offset + len(line))
            if not chunk:
                raise AnswerLogError(f"{self.path} became shorter while it was read")
            line += chunk[: chunk.find(b"\n") + 1 or None]
        return _reply(json.loads(line))

    def add(self, request: Request, reply: Reply) -> None:
        """Append an answer.

        Raises:
            AnswerLogError: if it cannot be written; the file is then as it was before.
        """
        content = {
            "key": request.digest.hex(),
            "scene": request.scene,
            "family": request.family,
            "step": request.step,
            "model": request.model,
            "text": reply.text,
            "finished": reply.finished,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
        }
        line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:  # a disk that becomes full takes a part
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._end)
            raise AnswerLogError(
                f"cannot write {self.path}: {error.strerror}; all answers up to here are kept, make room and run the "
                "command again"
            ) from None
        self._offsets[request.digest] = self._end
        self._end += len(line)
        self._count(request.step, request.model, reply)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnswerLogError(f"{self.path} is being written by another process") from None
        except OSError:  # a file system without locks
            return

    def _scan(self) -> int:
        """Index the lines; returns where the last whole one ends."""
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self.torn = len(line)
                    break
                try:
                    content = json.loads(line)
                    digest = bytes.fromhex(content["key"])
                    self._count(content["step"], content["model"], _reply(content))
                except (ValueError, KeyError, TypeError) as error:
                    raise AnswerLogError(
                        f"{self.path}, line {number} is no answer ({type(error).__name__}: {error}): remove the "
                        "line, or choose another --output"
                    ) from None
                self._offsets[digest] = end
                end += len(line)
        return end

    def _count(self, step: str, model: str, reply: Reply) -> None:
        self.steps[step] += 1
        self.usage.setdefault(model, Usage()).add(reply)


def _reply(content: dict[str, Any]) -> Reply:
    text, finished = content["text"], content["finished"]
    if not isinstance(text, str) or not isinstance(finished, bool):
        raise TypeError("text must be a string, finished a truth value")
    return Reply(text, finished, content["tokens_in"], content["tokens_out"])
