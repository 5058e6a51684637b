"""Faults of installed packages, planted in made-up site-packages."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from fakes import Site, context, hydra_answer, only, problems

from navsim_recogdrive.doctor.checks import imports, packages, pairs, python


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_healthy_packages_have_no_problems(site: Site) -> None:
    found = [*packages.check(context(site)), *pairs.check(context(site))]
    assert not problems(found)
    assert "8 packages are in the ranges" in found[0].found


@pytest.mark.parametrize(
    ("name", "version", "fix"),
    [
        ("transformers", "4.37.2", "pip install 'transformers<6,>=5.0'"),
        ("numpy", "1.23.4", "pip install 'numpy<3,>=1.26.4'"),
        ("hydra-core", "1.2.0", "pip install 'hydra-core<2,>=1.3.2'"),
        ("torch", "2.0.1+cu118", "pip install 'torch>=2.4'"),
    ],
)
def test_versions_outside_the_metadata_are_errors(site: Site, name: str, version: str, fix: str) -> None:
    site.install(name, version)
    found = only(packages.check(context(site)))
    assert (found.status, found.fix) == ("error", fix)
    assert found.found.startswith(f"{name} {version} is installed")


def test_missing_packages_name_the_extra_that_wants_them(site: Site) -> None:
    site.remove("pyarrow")
    found = only(packages.check(context(site)))
    assert found.status == "error"
    assert found.found == "pyarrow is missing; navsim-recogdrive[navsim] needs pyarrow"
    found = only(packages.check(context(site, stage="pretraining")))
    assert found.found.startswith("accelerate is missing; navsim-recogdrive[pretraining]")


def test_peft_is_wanted_where_lora_is_asked_for(site: Site) -> None:
    lora = {"hydra": hydra_answer(vlm={"training": "lora"}, cache_hidden_state=False)}
    assert not problems(packages.check(context(site)))
    assert only(packages.check(context(site, lora))).fix == "pip install 'peft>=0.18'"
    site.install("peft", "0.21.2")
    assert not problems(packages.check(context(site, lora)))


def test_packages_that_refuse_each_other_are_told(site: Site) -> None:
    site.install("hydra-core", "1.3.2", ["omegaconf (<2.4,>=2.2)"])
    site.install("omegaconf", "2.4.0")
    found = only(packages.check(context(site)))
    assert (found.status, found.found) == ("warning", "hydra-core 1.3.2 wants omegaconf<2.4,>=2.2, 2.4.0 is installed")
    site.install("omegaconf", "2.3.1")
    site.install("torchvision", "0.20.1", ["torch==2.5.1", "numpy"])
    assert "torchvision 0.20.1 wants torch==2.5.1, 2.13.0+cpu" in only(packages.check(context(site))).found


def test_requirements_for_other_pythons_are_left_out(site: Site) -> None:
    site.install("opencv-python", "5.0.0.93", ['numpy>=9; python_version < "3.0"'])
    assert not problems(packages.check(context(site)))


def test_headless_opencv_stands_in(site: Site) -> None:
    site.remove("opencv-python")
    assert problems(packages.check(context(site)))
    site.install("opencv-python-headless", "4.11.0.86")
    assert not problems(packages.check(context(site)))


def test_metadata_without_a_version_is_a_finding(site: Site) -> None:
    (info,) = site.folder.glob("torch-*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\n")
    assert "the metadata of torch is broken" in only(packages.check(context(site))).found


@pytest.mark.parametrize(
    ("installed", "status", "said"),
    [
        ({"numpy": "1.26.3"}, "warning", "cannot read metric caches that numpy 2 wrote"),
        ({"pandas": "2.1.4"}, "error", "pandas 2.1.4 was built for numpy 1, and numpy 2.4.6"),
        ({"pyarrow": "15.0.2"}, "error", "pyarrow 15.0.2 was built for numpy 1"),
        ({"opencv-python": "4.9.0.80"}, "error", "opencv-python 4.9.0.80 was built for numpy 1"),
        ({"torchvision": "0.28.0+cu128"}, "error", "torchvision 0.28.0+cu128 is built for another torch"),
        ({"opencv-python-headless": "5.0.0.93"}, "warning", "2 packages share the folder cv2"),
        ({"lightning": "2.5.0"}, "warning", "lightning 2.5.0 and pytorch-lightning 2.6.6 differ"),
    ],
)
def test_known_bad_pairs(site: Site, installed: dict[str, str], status: str, said: str) -> None:
    for name, version in installed.items():
        site.install(name, version)
    (found,) = problems(pairs.check(context(site)))
    assert found.status == status
    assert said in found.found


@pytest.mark.parametrize("installed", [{"pandas": "2.1.4"}, {"pyarrow": "15.0.2"}])
def test_packages_for_numpy_1_are_right_beside_it(site: Site, installed: dict[str, str]) -> None:
    for name, version in {"numpy": "1.26.4", **installed}.items():
        site.install(name, version)
    assert not problems(pairs.check(context(site)))


@pytest.mark.parametrize(
    ("module", "error", "fix"),
    [
        ("cv2", "ImportError: libGL.so.1: cannot open shared object file", "opencv-python-headless"),
        ("torchvision", "RuntimeError: operator torchvision::nms does not exist", "pip uninstall torchvision"),
        ("pyarrow", "ImportError: numpy.core.multiarray failed to import", "pyarrow==17.*"),
        ("pandas", "ValueError: numpy.dtype size changed, may indicate", "--force-reinstall pandas"),
        ("torch", "OSError: libcudnn.so.9: undefined symbol", "unset LD_LIBRARY_PATH"),
        ("torch", "TimeoutError: no answer after 2 s", "importtime -c 'import torch'"),
        ("shapely", "the process ended by signal 11", "pip install --force-reinstall shapely"),
    ],
)
def test_failed_imports_are_explained(site: Site, module: str, error: str, fix: str) -> None:
    site.module(module)
    site.module("numpy")
    found = only(imports.check(context(site, {f"import {module}": error, "import numpy": {}})))
    assert found.status == "error"
    assert error in found.found
    assert fix in found.fix


@pytest.mark.parametrize(("attention", "status"), [("sdpa", "warning"), ("flash_attention_2", "error")])
def test_broken_flash_attention_matters_where_asked_for(site: Site, attention: str, status: str) -> None:
    site.module("flash_attn")
    steps: dict[str, Any] = {
        "import flash_attn": "ImportError: undefined symbol: _ZN3c10",
        "hydra": hydra_answer(vlm={"attention": attention}),
    }
    assert only(imports.check(context(site, steps))).status == status


def test_missing_flash_attention_is_an_error_where_asked_for(site: Site) -> None:
    found = only(imports.check(context(site, {"hydra": hydra_answer(vlm={"attention": "flash_attention_2"})})))
    assert found.status == "error"
    assert "agent.vlm.attention=sdpa" in found.fix


@pytest.mark.parametrize(
    ("training", "stage", "status"),
    [("frozen", None, "warning"), ("lora", None, "error"), ("frozen", "pretraining", "error")],
)
def test_broken_peft_matters_where_it_is_used(site: Site, training: str, stage: str | None, status: str) -> None:
    site.module("peft")
    steps = {"import peft": "ImportError: no", "hydra": hydra_answer(vlm={"training": training})}
    assert only(imports.check(context(site, steps, stage=stage))).status == status


def test_python_and_installation(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.check for one in python.check(context(site))] == ["python.version", "python.installation"]
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    found = only(python.check(context(site)), "error")
    assert "Python 3.9.18" in found.found
    assert "is not in >=3.10" in found.found


def test_other_versions_and_copies_of_this_package_are_told(site: Site, tmp_path: Path) -> None:
    assert not problems(python.check(context(site)))
    copy = site.module("navsim_recogdrive")
    assert f"a runner would import {copy}" in only(python.check(context(site)), "warning").found
    site.install("navsim-recogdrive", "0.0.9")
    assert "installed is the metadata of 0.0.9" in only(python.check(context(site)), "warning").found
    site.remove("navsim-recogdrive")
    found = only(python.check(context(site)), "warning")
    assert "is not installed" in found.found
    assert list(packages.check(context(site))) == []
