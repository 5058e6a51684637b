"""NAVSIM and Hydra: absent, another project, half installed, shadowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Site, context, hydra_answer, only, problems

from navsim_recogdrive.doctor.checks import devkit, registration


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.mark.parametrize(("stage", "status"), [(None, "warning"), ("train", "error"), ("pretraining", "warning")])
def test_absent_navsim(site: Site, stage: str | None, status: str) -> None:
    found = only(devkit.check(context(site, stage=stage)))
    assert (found.status, found.found) == (status, "NAVSIM is not importable")
    assert "requirements/devkits.txt" in found.fix


def test_unrelated_navsim_of_pypi(site: Site) -> None:
    site.module("navsim")
    found = only(devkit.check(context(site)))
    assert found.status == "error"
    assert "PyPI's navsim is an unrelated project" in found.found
    assert found.fix.startswith("pip uninstall navsim")


def test_absent_nuplan(site: Site) -> None:
    site.navsim()
    (site.folder / "nuplan" / "__init__.py").unlink()
    (site.folder / "nuplan").rmdir()
    assert only(devkit.check(context(site, stage="cache")), "error").check == "navsim.nuplan"


def test_navsim_that_does_not_import(site: Site) -> None:
    site.navsim()
    found = only(devkit.check(context(site, {"navsim": "ModuleNotFoundError: No module named 'retry'"}, stage="rl")))
    assert found.status == "error"
    assert "No module named 'retry'" in found.found


@pytest.mark.parametrize(("major", "name"), [(1, "v1.x (PDMS"), (2, "v2.x (EPDMS)")])
def test_version_is_told(site: Site, major: int, name: str) -> None:
    site.navsim(major)
    found = only(devkit.check(context(site, {"navsim": {"major": major}})))
    assert found.status == "ok"
    assert name in found.found


def test_mixed_checkout_and_missing_configs(site: Site) -> None:
    root = site.navsim(2)
    (root / "planning/script/config/training").rmdir()
    found = problems(devkit.check(context(site, {"navsim": {"major": 1}})))
    assert [one.status for one in found] == ["warning", "error"]
    assert "agents of" in found[0].found
    assert "no Hydra configurations" in found[1].found


def test_devkit_root_comes_first_and_must_be_a_checkout(site: Site, tmp_path: Path) -> None:
    checkout = Site(tmp_path / "checkout", {})
    checkout.navsim(1)
    site.navsim(2)
    site.install("navsim", "2.2.0")
    environment = {"NAVSIM_DEVKIT_ROOT": str(checkout.folder)}
    found = list(devkit.check(context(site, {"navsim": {"major": 1}}, environment)))
    assert str(checkout.folder / "navsim") in only(found, "ok").found
    assert "navsim is installed too, in another folder" in only(found, "warning").found
    environment = {"NAVSIM_DEVKIT_ROOT": str(tmp_path)}
    found = list(devkit.check(context(site, {"navsim": {"major": 2}}, environment)))
    assert "is not a NAVSIM checkout" in only(found, "error").found


def test_registration(site: Site) -> None:
    found = only(registration.check(context(site, {"hydra": hydra_answer(), "settings": {}})))
    assert (found.status, found.check) == ("ok", "hydra.registration")


def test_shadowing_config(site: Site) -> None:
    answer = hydra_answer()
    answer["sources"].insert(0, {"provider": "main", "path": "/their/configs"})
    found = only(registration.check(context(site, {"hydra": answer})))
    assert found.status == "error"
    assert "is taken from /their/configs (main), not from this package" in found.found


def test_configs_of_the_same_name_inside_navsim(site: Site) -> None:
    config = site.navsim() / "planning/script/config"
    for folder in ("pdm_scoring", "common"):
        (config / folder / "agent").mkdir(parents=True)
        (config / folder / "agent" / "recogdrive_2b.yaml").touch()
    found = problems(registration.check(context(site, {"hydra": hydra_answer()})))
    assert [(one.status, one.found.split(":")[0].split(" ")[0]) for one in found] == [
        ("error", "NAVSIM's"),
        ("warning", "these"),
    ]
    assert "pdm_scoring/agent/recogdrive_2b.yaml" in found[0].found
    assert "common/agent/recogdrive_2b.yaml" in found[1].found


@pytest.mark.parametrize(
    ("agent", "error", "fix"),
    [
        ("recogdrive_2b", "MissingConfigException: Could not find 'agent/recogdrive_2b'", "pip install -e ."),
        (
            "recogdrive_7b",
            "MissingConfigException: Could not find 'agent/recogdrive_7b'",
            "recogdrive_2b, recogdrive_2b_rl",
        ),
        ("recogdrive_2b", "ConfigAttributeError: Key 'x' is not in struct\n    full_key: agent.x", "override"),
    ],
)
def test_unresolved_agents(site: Site, agent: str, error: str, fix: str) -> None:
    found = only(registration.check(context(site, {"hydra": error}, agent=agent)))
    assert found.status == "error"
    assert error.splitlines()[0] in found.found
    assert fix in found.fix


def test_joint_reinforcement_learning_is_refused(site: Site) -> None:
    steps = {"hydra": hydra_answer(cache_hidden_state=False)}
    found = only(registration.check(context(site, steps, stage="rl")), "error")
    assert found.fix == "leave agent.cache_hidden_state out"


def test_settings_that_do_not_hold(site: Site) -> None:
    steps = {"hydra": hydra_answer(), "settings": "InvalidSetting: cache_mode must be one of bf16, int8"}
    found = only(registration.check(context(site, steps)), "error")
    assert (found.check, "cache_mode must be one of" in found.found) == ("hydra.settings", True)
