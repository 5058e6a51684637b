"""Whole numbers on the command line: the ``type`` of an argument."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number_from(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least ``least``, which is not negative; argparse prints the error otherwise."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, found {text!r}")
        return int(text)

    return read
