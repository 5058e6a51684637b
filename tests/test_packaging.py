"""The package as users install it: a wheel in a clean environment, and an import that stays light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

RESOLVE = """
from hydra import compose, initialize
with initialize(version_base=None, config_path=None):
    for name, size in (("recogdrive_2b", 1536), ("recogdrive_8b", 3584)):
        agent = compose(overrides=[f"+agent={name}", "agent/planner=dit_large"]).agent
        assert agent._target_ == "navsim_recogdrive.agents.recogdrive_agent.ReCogDriveAgent", agent
        assert agent.planner.hidden_state_size == size and agent.planner.num_heads == 32, agent
    for name, size in (("recogdrive_vlm_2b", 1536), ("recogdrive_vlm_8b", 3584)):
        agent = compose(overrides=[f"+agent={name}"]).agent
        assert agent._target_ == "navsim_recogdrive.agents.text_agent.ReCogDriveTextAgent", agent
        assert agent.hidden_size == size, agent
import sys
heavy = {"torch", "transformers", "navsim", "nuplan"} & set(sys.modules)
assert not heavy, f"resolving the config imported {heavy}"
print("resolved")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in tracked:  # a copy, so that building leaves nothing in the repository
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source)], check=True
    )
    return next(folder.glob("*.whl"))


def test_wheel_holds_code_and_data_but_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "hydra_plugins/navsim_recogdrive/search_path.py",
        "navsim_recogdrive/py.typed",
        "navsim_recogdrive/configs/agent/recogdrive_2b.yaml",
        "navsim_recogdrive/configs/agent/planner/dit_large.yaml",
        "navsim_recogdrive/configs/offline.yaml",
        "navsim_recogdrive/configs/worker/ray_shared_gpus.yaml",
        "navsim_recogdrive/report/page.css",
        "navsim_recogdrive/report/page.js",
        "navsim_recogdrive/vlm/profiles/published.json",
        "navsim_recogdrive/pretraining/mixtures/recogdrive.json",
        "navsim_recogdrive/pretraining/labelling/questions/steps.yaml",
        "navsim_recogdrive/planner/samplers/ddim.py",
    ):
        assert needed in names, needed
    assert "hydra_plugins/__init__.py" not in names, "hydra_plugins is a namespace package shared with other plugins"
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "benchmarks/"))]


def test_navsim_is_no_requirement(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    required = [line.split(":", 1)[1].split()[0] for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert required
    assert not [name for name in required if name.lower().split(";")[0] in ("navsim", "nuplan-devkit")]


def test_config_resolves_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "clean" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "clean")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "hydra-core>=1.3.2,<2"], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([str(python), "-c", RESOLVE], cwd=elsewhere, capture_output=True, text=True)
    assert done.stdout.strip() == "resolved", done.stderr


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, navsim_recogdrive, hydra_plugins.navsim_recogdrive.search_path\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'navsim'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
