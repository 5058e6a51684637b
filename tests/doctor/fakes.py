"""Broken environments: site-packages with any metadata, modules that fail, data folders, answers of steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import ERROR, OK, WARNING, Finding
from navsim_recogdrive.doctor.isolated.runner import StepResult
from navsim_recogdrive.doctor.request import Request

REPOSITORY = Path(__file__).parents[2]
CITIES = ("sg-one-north", "us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")

OWN_REQUIREMENTS = (
    "numpy<3,>=1.26.4",
    "torch>=2.4",
    "transformers<6,>=5.0",
    "hydra-core<2,>=1.3.2",
    "omegaconf<3,>=2.3",
    "pytorch-lightning<3,>=2.4",
    "opencv-python<6,>=4.9",
    'pyarrow; extra == "navsim"',
    'peft>=0.18; extra == "lora"',
    'accelerate>=1.6; extra == "pretraining"',
)

HEALTHY = {
    "numpy": "2.4.6",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "hydra-core": "1.3.2",
    "omegaconf": "2.3.1",
    "pytorch-lightning": "2.6.6",
    "opencv-python": "5.0.0.93",
    "pyarrow": "26.0.1",
}


class Site:
    """A made-up folder of installed packages."""

    def __init__(self, folder: Path, versions: Mapping[str, str] = HEALTHY) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.install("navsim-recogdrive", "0.1.0", OWN_REQUIREMENTS)
        for name, version in versions.items():
            self.install(name, version)

    def install(self, name: str, version: str, requires: Iterable[str] = ()) -> None:
        for old in self.folder.glob(f"{name.replace('-', '_')}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {line}" for line in requires]
        content = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Requires-Python: >=3.10", *lines]
        (info / "METADATA").write_text("\n".join(content) + "\n")

    def remove(self, name: str) -> None:
        for info in self.folder.glob(f"{name.replace('-', '_')}-*.dist-info"):
            (info / "METADATA").unlink()
            info.rmdir()

    def module(self, name: str, code: str = "") -> Path:
        file = self.folder.joinpath(*name.split("."), "__init__.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        return file.parent

    def navsim(self, major: int = 2) -> Path:
        """The files by which NAVSIM is known."""
        root = self.module("navsim")
        self.module("nuplan")
        for name in ("agents/abstract_agent.py", "planning/script/run_pdm_score.py"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        if major == 2:
            (root / "planning/script/run_pdm_score_one_stage.py").touch()
        (root / "planning/script/config/training").mkdir(parents=True)
        return root


def context(
    site: Site | None = None,
    steps: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    **request: Any,
) -> Context:
    """A context in which ``steps`` have answered already: with a value, or a string, which is an error."""

    def run(*_: Any) -> dict[str, StepResult]:
        return {
            name: StepResult(error=answer) if isinstance(answer, str) else StepResult(answer)
            for name, answer in (steps or {}).items()
        }

    path = None if site is None else [str(site.folder)]
    return Context(Request(environment=environment or {}, **request), path, run)


def hydra_answer(**agent: Any) -> dict[str, Any]:
    """What the step ``hydra`` answers for the published 2B agent, with changes."""
    settings = {
        "cache_hidden_state": True,
        "cache_mode": "bf16",
        "cam_type": "single",
        "vlm": {"dtype": "bfloat16", "attention": "sdpa", "training": "frozen", **agent.pop("vlm", {})},
        "planner": {"hidden_state_size": 1536},
        **agent,
    }
    sources = [{"provider": "navsim-recogdrive", "path": "navsim_recogdrive.configs"}]
    loader = {"batch_size": None, "num_workers": 4, "prefetch_factor": 2}
    return {"agent": settings, "dataloader": loader, "sources": sources}


def only(findings: Iterable[Finding], status: str = "") -> Finding:
    """The one finding (of a status)."""
    found = [one for one in findings if status in ("", one.status)]
    assert len(found) == 1, found
    return found[0]


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Those that are not ok; each must say what to do."""
    found = [one for one in findings if one.status != OK]
    assert all(one.fix and one.status in (WARNING, ERROR) for one in found), found
    return found


def write_maps(root: Path) -> None:
    index = {city: {"version": "9.12.1817", "layers": {}} for city in CITIES}
    for city in CITIES:
        file = root / city / "9.12.1817" / "map.gpkg"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"map")
    (root / "nuplan-maps-v1.0.json").write_text(json.dumps(index))


def write_logs(root: Path, split: str, names: Iterable[str], cameras: Iterable[str] = ("CAM_F0",)) -> None:
    (root / "navsim_logs" / split).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / "navsim_logs" / split / f"{name}.pkl").write_bytes(b"log")
        for camera in cameras:
            folder = root / "sensor_blobs" / split / name / camera
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "0.jpg").write_bytes(b"image")
