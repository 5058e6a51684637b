"""Reads a submission of NAVSIM's runners without running anything it names.

A submission is a pickle, and a pickle may name any function to be called while it is loaded. Here only what a
submission needs is admitted: trajectories, their sampling and arrays. NAVSIM's own classes are stood in for, so it need
not be importable.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any


class UnreadableSubmission(ValueError):
    """A file that is no pickle, or that names what no submission needs."""


class SubmittedTrajectory:
    """Stands in for NAVSIM's ``Trajectory``: what it held, unchecked, as attributes."""


class SubmittedSampling:
    """Stands in for nuPlan's ``TrajectorySampling``: what it held, unchecked, as attributes."""


_STAND_INS = {
    ("navsim.common.dataclasses", "Trajectory"): SubmittedTrajectory,
    ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"): SubmittedSampling,
}
_ADMITTED = {
    ("_codecs", "encode"),
    ("builtins", "object"),
    ("__builtin__", "object"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
}
_HINTS = {
    "torch": "poses must be numpy arrays, as Trajectory asks for: .numpy() in compute_trajectory",
    "omegaconf": "team_name, authors, ... must each be one text: authors='A, B' and not a list",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if (module, name) in _ADMITTED:
            return super().find_class(module, name)
        hint = _HINTS.get(module.split(".")[0], "it was not written by NAVSIM's runners; nothing of it was run")
        raise UnreadableSubmission(f"it names {module}.{name}, which no submission needs: {hint}")


def read_submission(path: Path) -> Any:
    """What the pickle in ``path`` holds, trajectories as stand-ins.

    Raises:
        UnreadableSubmission: if it cannot be read, is no pickle, or names what no submission needs.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except UnreadableSubmission as error:
        raise UnreadableSubmission(f"{path} was not loaded: {error}") from error
    except OSError as error:
        raise UnreadableSubmission(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes make it raise
        raise UnreadableSubmission(f"{path} is no whole pickle ({type(error).__name__}: {error})") from error
