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
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is submitted to the device inside."""
        if self._cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events[name] = begin, end
        else:
            start = time.perf_counter()
            yield
            self._seconds[name] = time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds by part. On CUDA the device must have finished them."""
        timed = {name: 1e-3 * begin.elapsed_time(end) for name, (begin, end) in self._events.items()}
        return {**self._seconds, **timed}
