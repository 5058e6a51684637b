"""Seconds that a device needs for parts of a training step, without making the host wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Times parts of a step on a device: with events on CUDA, with the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._begun: dict[str, torch.cuda.Event | float] = {}
        self._ended: dict[str, torch.cuda.Event | float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is submitted to the device inside."""
        self.begin(name)
        yield
        self.end(name)

    def begin(self, name: str) -> None:
        """A part begins with what is submitted next."""
        self._begun[name] = self._now()

    def end(self, name: str) -> None:
        """A part ends with what was submitted last."""
        self._ended[name] = self._now()

    def _now(self) -> torch.cuda.Event | float:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds by part that has ended; waits for the device to finish the last of them."""
        return {name: _difference(self._begun[name], end) for name, end in self._ended.items()}


def _difference(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float)
        assert isinstance(end, float)
        return end - begin
    end.synchronize()
    return 1e-3 * float(begin.elapsed_time(end))
