"""Reads a submission of NAVSIM's runners without running anything it names.

A submission is a pickle, and a pickle may name any function to be called while it is loaded, and ask for any memory.
Python's own unpickler is therefore not used: its opcodes are carried out here, those that a submission needs, on plain
data and stand-ins. NAVSIM's own classes are stood in for too, so it need not be importable.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from navsim_recogdrive.agents.submission_arrays import (
    SubmittedArray,
    SubmittedDtype,
    UnreadableSubmission,
    number_of,
)

_LONGEST_SHOWN = 64


class _StandIn:
    """An object of which the attributes in ``_FIELDS`` are kept, unchecked; those not given are ``None``."""

    _FIELDS: tuple[str, ...] = ()

    def restore(self, state: object) -> None:
        if type(state) is not dict:
            raise UnreadableSubmission(f"a {type(self).__name__} has {describe(state)} in place of its attributes")
        for name in self._FIELDS:
            value = state.get(name)
            values = value.values if isinstance(value, SubmittedArray) else None
            setattr(self, name, value if values is None else values)


class SubmittedTrajectory(_StandIn):
    """Stands in for NAVSIM's ``Trajectory``: what it held, unchecked; poses are an array if they are of numbers."""

    _FIELDS = ("poses", "trajectory_sampling")
    poses: Any = None
    trajectory_sampling: Any = None


class SubmittedSampling(_StandIn):
    """Stands in for nuPlan's ``TrajectorySampling``: what it held, unchecked."""

    _FIELDS = ("num_poses", "interval_length")
    num_poses: Any = None
    interval_length: Any = None


def describe(value: object) -> str:
    """A short text for what a file holds: its value if it is a small one of Python's own, else its type."""
    if type(value) is str:
        return ascii(value) if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]!a}..."
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 2**64):
        return repr(value)
    if isinstance(value, (list, dict, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return "numpy array" if isinstance(value, SubmittedArray) else type(value).__name__


@dataclass(frozen=True)
class _Named:
    """A function or class that a file may name: what is made when it is called, and by ``cls.__new__``."""

    call: Callable[..., Any] | None = None
    new: Callable[[], Any] | None = None


_FRAME_BYTES = 9
"""Of the opcode itself: its code and a length of eight bytes."""


class _Machine:
    """Carries out the opcodes of one pickle; memory and time are in proportion to its size."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encodable = size  # a file may encode one text over and over
        ndarray, buffers = _Named(), _Named(SubmittedArray.from_buffer)
        reconstruct = _Named(partial(_empty_array, ndarray))
        self.named = {
            ("navsim.common.dataclasses", "Trajectory"): _Named(new=SubmittedTrajectory),
            ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"): _Named(
                new=SubmittedSampling
            ),
            ("_codecs", "encode"): _Named(self._encode),
            ("numpy", "ndarray"): ndarray,
            ("numpy", "dtype"): _Named(SubmittedDtype),
        }
        for builtins, copyreg in (("builtins", "copyreg"), ("__builtin__", "copy_reg")):
            self.named |= {(builtins, "object"): _Named(), (copyreg, "_reconstructor"): _Named(self._reconstructor)}
        for core in ("numpy.core", "numpy._core"):
            self.named |= {
                (f"{core}.multiarray", "_reconstruct"): reconstruct,
                (f"{core}.multiarray", "scalar"): _Named(number_of),
                (f"{core}.numeric", "_frombuffer"): buffers,
            }

    def run(self, data: bytes) -> Any:
        """The object that is pickled in ``data``."""
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.pop()
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            elif opcode.name == "FRAME":
                if int(argument or 0) > len(data) - int(position or 0) - _FRAME_BYTES:
                    raise UnreadableSubmission("it is cut off")
            elif opcode.name != "PROTO":
                raise UnreadableSubmission(f"it uses the pickle opcode {opcode.name}, which no submission needs")
        raise UnreadableSubmission("it has no end")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnreadableSubmission("it takes more from its stack than it put there")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise UnreadableSubmission("it looks for a mark that it did not set")
        start = self.marks.pop()
        popped = self.stack[start:]
        del self.stack[start:]
        return popped

    def take(self, count: int) -> tuple[Any, ...]:
        """The last ``count`` of the stack as a tuple."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def remember(self, index: int) -> None:
        self.memo[index] = self.peek()

    def peek(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def extend(self, values: list[Any]) -> None:
        target = self.peek()
        if type(target) is not list:
            raise UnreadableSubmission(f"it appends to {describe(target)}")
        target.extend(values)

    def set_items(self, items: list[Any]) -> None:
        target = self.peek()
        if type(target) is not dict or len(items) % 2:
            raise UnreadableSubmission(f"it sets entries of {describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others can be made to take forever to hash.
            if type(key) is not str and not (type(key) is int and abs(key) < 2**32):
                raise UnreadableSubmission(f"a dict has the key {describe(key)}: scenes are named by texts")
            target[key] = value

    def name(self, module: object, name: object) -> None:
        found = self.named.get((module, name)) if type(module) is str and type(name) is str else None
        if found is None:
            shown = ".".join(describe(part).strip("'") for part in (module, name))
            hint = _HINTS.get(str(module).split(".")[0] if type(module) is str else "", _NO_HINT)
            raise UnreadableSubmission(f"it names {shown}, which no submission needs: {hint}")
        self.stack.append(found)

    def reduce(self) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Named) or function.call is None or type(arguments) is not tuple:
            raise UnreadableSubmission("it calls what no submission calls")
        self.stack.append(function.call(*arguments))

    def new(self) -> None:
        class_, arguments = self.take(2)
        if type(arguments) is not tuple or arguments:
            raise UnreadableSubmission("it makes an object with arguments, which no submission does")
        self.stack.append(self._reconstructor(class_))

    def build(self) -> None:
        state = self.pop()
        target = self.peek()
        if not isinstance(target, (_StandIn, SubmittedArray, SubmittedDtype)):
            raise UnreadableSubmission(f"it sets the state of {describe(target)}")
        target.restore(state)

    def _encode(self, text: object, encoding: object) -> bytes:
        if type(text) is not str or encoding != "latin1" or len(text) > self.encodable:
            raise UnreadableSubmission("it encodes what no submission does")
        self.encodable -= len(text)
        return text.encode("latin1")

    @staticmethod
    def _reconstructor(class_: object, *base_and_state: object) -> Any:
        if not isinstance(class_, _Named) or class_.new is None:
            raise UnreadableSubmission("it makes an object of what no submission does")
        return class_.new()


def _empty_array(ndarray: object, *arguments: object) -> SubmittedArray:
    if len(arguments) != 3 or arguments[0] is not ndarray or arguments[1:] != ((0,), b"b"):
        raise UnreadableSubmission("it has a numpy array of another form than numpy writes")
    return SubmittedArray()


_HINTS = {
    "torch": "poses must be numpy arrays, as Trajectory asks for: .numpy() in compute_trajectory",
    "omegaconf": "team_name, authors, ... must each be one text: authors='A, B' and not a list",
}
_NO_HINT = "it was not written by NAVSIM's runners; nothing of it was run"
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(items)


_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "DICT": lambda machine, _: _dict(machine),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.take(3)),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.take(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.new(),
    "BUILD": lambda machine, _: machine.build(),
}


def read_submission(path: Path) -> Any:
    """What the pickle in ``path`` holds: plain data, arrays of numbers, and stand-ins for trajectories.

    Raises:
        UnreadableSubmission: if it cannot be read, is no pickle, or names what no submission needs.
    """
    try:
        data = path.read_bytes()
        return _Machine(len(data)).run(data)
    except UnreadableSubmission as error:
        raise UnreadableSubmission(f"{path} was not loaded: {error}") from error
    except OSError as error:
        raise UnreadableSubmission(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes make it raise
        raise UnreadableSubmission(f"{path} is no whole pickle ({type(error).__name__}: {str(error)[:200]})") from error
