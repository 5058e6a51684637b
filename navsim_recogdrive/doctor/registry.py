"""All checks, in the order in which their findings are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from navsim_recogdrive.doctor.checks import (
    checkpoints,
    data,
    devkit,
    disk,
    environment,
    feature_cache,
    gpu,
    imports,
    maps,
    metric_cache,
    packages,
    pairs,
    processors,
    python,
    registration,
    second_stage,
    vlm,
)
from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error
from navsim_recogdrive.doctor.request import STAGES

_DRIVING = ("cache", "train", "rl", "evaluate", "submit")
"""Stages that run inside NAVSIM."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: for the finding that it failed itself.
        run: looks and says what it found.
        stages: that need what it looks at.
    """

    name: str
    run: Callable[[Context], Iterable[Finding]]
    stages: tuple[str, ...] = STAGES


CHECKS = (
    Check("python", python.check),
    Check("packages.versions", packages.check),
    Check("packages.pairs", pairs.check),
    Check("packages.imports", imports.check),
    Check("navsim", devkit.check),
    Check("hydra", registration.check, _DRIVING),
    Check("environment", environment.check),
    Check("data", data.check),
    Check("data.second_stage", second_stage.check, ("cache", "evaluate", "submit")),
    Check("maps", maps.check, ("cache", "evaluate", "submit", "pretraining")),
    Check("vlm", vlm.check),
    Check("checkpoint", checkpoints.check, ("train", "rl", "evaluate", "submit")),
    Check("cache", feature_cache.check, ("cache", "train", "rl", "evaluate", "submit")),
    Check("metric_cache", metric_cache.check, ("rl", "evaluate")),
    Check("machine.gpu", gpu.check, _DRIVING),
    Check("machine.processors", processors.check),
    Check("machine.disk", disk.check, ("cache",)),
)


def diagnose(context: Context, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Run the checks that the request's stage needs; never raises."""
    findings: list[Finding] = []
    for check in checks:
        if not context.request.wants(*check.stages):
            continue
        try:
            findings += check.run(context)
        except Exception as problem:  # a broken environment is the doctor's subject, not its end
            findings.append(
                error(
                    check.name,
                    f"this check itself failed ({type(problem).__name__}: {problem})",
                    "look at what it names; if nothing is wrong there, please report it with the output of --json",
                )
            )
    return findings
