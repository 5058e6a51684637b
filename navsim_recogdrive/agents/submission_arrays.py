"""What a submission may hold besides plain data, rebuilt without handing anything of it to numpy's own unpickling.

numpy trusts a pickled dtype, and one with forged flags turns bytes of the file into pointers. Here only arrays of plain
numbers come to be, from as many bytes as they need; of all others no more is kept than the name of their type.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_NUMBERS = frozenset({"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"})
_MOST_AXES = 8


class UnreadableSubmission(ValueError):
    """A file that is no pickle, or that names what no submission needs."""


class SubmittedDtype:
    """Stands in for numpy's ``dtype``.

    Attributes:
        code: such as ``f4``, shortened: not to be passed on to numpy.
        plain: numpy's dtype if it is one of a bool, an int or a float; else ``None``.
    """

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        self.code = str(code)[:8] if type(code) is str else type(code).__name__
        self.plain = np.dtype(code) if type(code) is str and code in _NUMBERS else None

    def restore(self, state: object) -> None:
        """Take over the order of the bytes; a plain dtype has no other state.

        Raises:
            UnreadableSubmission: if a plain dtype has one.
        """
        if self.plain is None:
            return
        order: Any = state[1] if type(state) is tuple and len(state) == 8 else None
        if type(order) is not str or order not in ("<", ">", "|") or state != (3, order, *[None] * 3, -1, -1, 0):
            raise UnreadableSubmission(f"its numpy dtype {self.code} has fields or flags, which numbers have not")
        if order == ">":
            self.plain = self.plain.newbyteorder(">")


class SubmittedArray:
    """Stands in for numpy's ``ndarray`` while a file is read.

    Attributes:
        dtype: code of its type.
        values: the array, read-only; ``None`` if it is none of plain numbers.
    """

    def __init__(self, *of_an_empty_one: object) -> None:
        self.dtype = "nothing"
        self.values: NDArray[Any] | None = None

    def restore(self, state: object) -> None:
        """Take over what ``ndarray.__reduce__`` gave: version, shape, dtype, whether in Fortran's order, bytes.

        Raises:
            UnreadableSubmission: if it is no such tuple, or shape and bytes do not agree.
        """
        if type(state) is not tuple or len(state) != 5:
            raise UnreadableSubmission("it has a numpy array of another form than numpy writes")
        _, shape, dtype, fortran, data = state
        self._fill(data, dtype, shape, "F" if fortran is True else "C")

    @classmethod
    def from_buffer(cls, data: object, dtype: object, shape: object, order: object, axes: Any = None) -> Any:
        """What ``_frombuffer`` of numpy makes of pickles of protocol 5; raises as ``restore`` does."""
        made = cls()
        made._fill(data, dtype, shape, "F" if order == "F" else "C")
        if made.values is not None and axes is not None:
            if not _whole_numbers(axes) or sorted(axes) != list(range(made.values.ndim)):
                raise UnreadableSubmission("it has a numpy array whose axes are in no order")
            made.values = made.values.transpose(axes)
        return made

    def _fill(self, data: object, dtype: object, shape: Any, order: Literal["C", "F"]) -> None:
        if not isinstance(dtype, SubmittedDtype):
            raise UnreadableSubmission("it has a numpy array without a dtype")
        self.dtype, self.values = dtype.code, None
        if dtype.plain is None:
            return
        if not _whole_numbers(shape) or len(shape) > _MOST_AXES or not isinstance(data, (bytes, bytearray)):
            raise UnreadableSubmission("it has a numpy array of another form than numpy writes")
        if math.prod(shape) * dtype.plain.itemsize != len(data):
            raise UnreadableSubmission(f"it has a numpy array whose shape does not fit its {len(data)} bytes")
        # A view, no copy: a file may use the same bytes for any number of arrays.
        self.values = np.frombuffer(data, dtype.plain).reshape(shape, order=order)
        self.values.flags.writeable = False


def _whole_numbers(value: Any) -> bool:
    return type(value) is tuple and all(type(one) is int and 0 <= one < 2**31 for one in value)


def number_of(dtype: object, data: object) -> bool | int | float:
    """What numpy's ``scalar`` makes, as Python's own number.

    Raises:
        UnreadableSubmission: if it is no number, or the bytes are not those of one.
    """
    if not isinstance(dtype, SubmittedDtype) or dtype.plain is None or not isinstance(data, (bytes, bytearray)):
        raise UnreadableSubmission("it has a numpy scalar that is no number: use Python's own texts and numbers")
    if len(data) != dtype.plain.itemsize:
        raise UnreadableSubmission(f"it has a numpy scalar of {dtype.code} of {len(data)} bytes")
    value: bool | int | float = np.frombuffer(data, dtype.plain)[0].item()
    return value
