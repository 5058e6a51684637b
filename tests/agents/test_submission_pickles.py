"""The checker of submissions reads files without running anything: forged ones, and all forms of sound ones."""

from __future__ import annotations

import os
import pickle
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from submission_files import CREDIT, TOKENS, Check, findings

from navsim_recogdrive.agents.check_submission import main
from navsim_recogdrive.agents.submission_arrays import UnreadableSubmission
from navsim_recogdrive.agents.submission_file import SubmittedSampling, SubmittedTrajectory, read_submission

pytestmark = pytest.mark.navsim


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle(submission_v1: dict[str, Any], check_submission: Check, protocol: int) -> None:
    assert check_submission(pickle.dumps(submission_v1, protocol=protocol))["findings"] == []


def test_nothing_is_run(check_submission: Check, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    report = check_submission({**CREDIT, "predictions": [{TOKENS[0]: Evil()}]})
    assert findings(report) == [("error", "unreadable")]
    assert "it names posix.mkdir, which no submission needs" in report["findings"][0]["message"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnavsim.common.dataclasses\nScene\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",
        b"(dp0\nP1\n.",
    ],
)
def test_names_that_no_submission_needs_are_refused(tmp_path: Path, opcodes: bytes) -> None:
    file = tmp_path / "evil.pkl"
    file.write_bytes(opcodes)
    with pytest.raises(UnreadableSubmission):
        read_submission(file)


def test_stand_ins_hold_what_was_pickled(submission_v1: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(submission_v1))
    read = read_submission(tmp_path / "file")["predictions"][0][TOKENS[0]]
    assert isinstance(read, SubmittedTrajectory)
    assert isinstance(read.trajectory_sampling, SubmittedSampling)
    np.testing.assert_array_equal(read.poses, submission_v1["predictions"][0][TOKENS[0]].poses)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _array(code: str, flags: int, data: bytes, shape: bytes = b"K\x02\x85", core: str = "numpy.core") -> bytes:
    """Opcodes of an array as numpy pickles it, of forged parts."""
    empty = f"c{core}.multiarray\n_reconstruct\ncnumpy\nndarray\n".encode() + b"K\x00\x85C\x01b\x87R"
    order = _text("|" if code == "O8" else "<")
    dtype = b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R(K\x03" + order
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


def test_bytes_of_the_file_never_become_pointers(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    """An array of objects whose dtype says it holds none: numpy would take its bytes for their addresses."""
    pointers = struct.pack("<QQ", 0x4141414141414141, 0x42424242)
    for core in ("numpy.core", "numpy._core"):
        forged = b"\x80\x03}(" + _text("team_name") + _array("O8", 0, pointers, core=core) + b"u."
        assert findings(check_submission(forged))[-1] == ("error", "format")
        assert "found numpy array" in check_submission(forged)["findings"][0]["message"]
    submission_v1["predictions"][0][TOKENS[0]] = submitted_trajectory("here")
    as_poses = pickle.dumps(submission_v1, protocol=3).replace(_text("here"), _array("O8", 0, pointers))
    assert check_submission(as_poses)["findings"][0]["message"].endswith("must be an array of floats, found O8")


def test_arrays_of_numbers_are_read_whatever_their_form(
    submission_v1: dict[str, Any], tmp_path: Path, submitted_trajectory: Callable[..., Any]
) -> None:
    values = np.arange(24.0).reshape(4, 2, 3)
    forms = [values.astype(kind) for kind in ("?", "u1", "i8", "f2", "<f4", ">f8")]
    forms += [np.asfortranarray(values), values.transpose(1, 0, 2), values[:, ::-1], values[0, 0, 0]]
    for protocol, core in ((2, b"numpy.core."), (2, b"numpy._core."), (pickle.HIGHEST_PROTOCOL, None)):
        for form in forms:
            submission_v1["predictions"][0][TOKENS[0]] = submitted_trajectory(form)
            pickled = pickle.dumps(submission_v1, protocol=protocol)
            if core is not None:
                pickled = re.sub(rb"numpy\._?core\.", core, pickled)
            (tmp_path / "file").write_bytes(pickled)
            poses = read_submission(tmp_path / "file")["predictions"][0][TOKENS[0]].poses
            np.testing.assert_array_equal(poses, form)
            assert isinstance(poses, float) if form.ndim == 0 else poses.dtype == form.dtype


@pytest.mark.parametrize(
    ("opcodes", "said"),
    [
        (_array("f4", 63, bytes(8)), "has fields or flags"),
        (_array("f4", 0, bytes(9)), "does not fit its 9 bytes"),
        (_array("f4", 0, b"", b"(" + b"J\xff\xff\xff\x7f" * 8 + b"t"), "does not fit its 0 bytes"),
        (_array("f4", 0, b"", b"(" + b"K\x01" * 99 + b"t"), "of another form"),
        (_array("f4", 0, b"", b"J\xff\xff\xff\xff\x85"), "of another form"),
        (
            b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + _text("O8") + b"\x85RC\x08" + bytes(8) + b"\x86R",
            "no num",
        ),
        (b"cnumpy.core.multiarray\n_reconstruct\n(tR", "of another form"),
        (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R", "of another form"),
        (b"\x95" + struct.pack("<Q", 99) + b"N", "cut off"),
        (b"Nr\xff\xff\xff\xff", None),  # a memo of 4 billion places, in Python's unpickler
        (b"\x8e" + struct.pack("<Q", 2**60), "no whole pickle"),
        (b"\x8b\xff\xff\xff\x7f", "no whole pickle"),
        (b"I" + b"9" * 100_000 + b"\n", "no whole pickle"),
        (b"]" * 30_000 + b"a" * 29_999, None),
        (b"}(" + b")" + b"2\x86" * 60 + b"Nu", "opcode DUP"),
        (b"}()" + b"q\x00h\x00\x86" * 60 + b"Nu", "has the key a tuple of 2"),
        (b"N)R", "calls what no submission calls"),
        (
            b"c_codecs\nencode\nq\x00" + _text("x" * 99) + b"q\x010" + (b"h\x00h\x01" + _text("latin1") + b"\x86R") * 9,
            "encodes",
        ),
        (b"h\x05", "no whole pickle"),
        (b"0", "takes more from its stack"),
        (b"u", "looks for a mark"),
        (b"NNb", "sets the state of None"),
        (b"NNa", "appends to None"),
        (b"N(u", "sets entries of None"),
        (b"NN\x81", "makes an object"),
    ],
    ids=range(25),
)
def test_files_made_to_harm_are_one_clear_error(check_submission: Check, opcodes: bytes, said: str | None) -> None:
    tracemalloc.start()
    report = check_submission(b"\x80\x03" + opcodes + b".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert findings(report) == [("error", "unreadable" if said else "format")]
    assert (said or "a submission is a dict") in report["findings"][0]["message"]


def test_texts_of_the_file_are_shown_short_and_escaped(
    submission_v1: dict[str, Any],
    tmp_path: Path,
    submitted_trajectory: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    submission_v1["predictions"][0] |= {"\x1b[2J\ud800" + "x" * 10_000: submitted_trajectory([1])}
    submission_v1 |= {"team_name": list(range(10**5)), "email": "y" * 10**5, "\x1b": 1}
    (tmp_path / "file").write_bytes(pickle.dumps(submission_v1))
    main([str(tmp_path / "file")])
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed
    assert "'team_name' must be a text, found a list of 100000" in printed
    assert len(printed) < 2000


@pytest.mark.parametrize(
    "interval", [np.array([0.5, 0.5]), np.array(["a"], dtype=object), [0.5], "0.5", 10**5000, None], ids=range(6)
)
def test_a_sampling_of_another_type(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any], interval: Any
) -> None:
    from navsim_recogdrive.agents.compat import TrajectorySampling

    sampling = TrajectorySampling(num_poses=8, interval_length=0.5)
    object.__setattr__(sampling, "interval_length", interval)
    submission_v1["predictions"][0][TOKENS[2]] = submitted_trajectory(sampling=sampling)
    assert findings(check_submission(submission_v1)) == [("error", "sampling")]
    object.__setattr__(sampling, "interval_length", np.float64(0.5))
    assert check_submission(submission_v1)["valid"]
