"""The documentation builds without a warning, its list of options is that of the code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import REPOSITORY

DOCS = REPOSITORY / "docs"


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(output)],
        capture_output=True,
        text=True,
    )


def test_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages == {path.stem for path in (tmp_path / "site").glob("*.html")} - {"genindex", "search"}


def test_a_broken_link_fails(tmp_path: Path) -> None:
    """The build is as strict as it is meant to be: files, anchors and pages that nothing leads to."""
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(DOCS / "conf.py", source)
    text = "# Title\n\n[file](missing.txt) [anchor](other.md#nowhere)\n\n```{toctree}\nother\n```\n"
    (source / "index.md").write_text(text)
    (source / "other.md").write_text("# Other\n")
    (source / "alone.md").write_text("# Alone\n")
    done = build(source, tmp_path / "site")
    assert done.returncode != 0
    for complaint in ("missing.txt", "nowhere", "alone.md"):
        assert complaint in done.stderr, done.stderr


def options_tool(*arguments: str, root: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    tool = root / "docs" / "tools" / "write_options.py"
    return subprocess.run([sys.executable, str(tool), *arguments], capture_output=True, text=True)


def test_options_are_those_of_the_code() -> None:
    done = options_tool("--check")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the tool reads, to change it."""
    shutil.copytree(DOCS / "tools", tmp_path / "docs" / "tools")
    shutil.copytree(REPOSITORY / "navsim_recogdrive", tmp_path / "navsim_recogdrive")
    shutil.copy(DOCS / "options.md", tmp_path / "docs")
    return tmp_path


def test_a_new_option_makes_the_page_out_of_date(copy: Path) -> None:
    config = copy / "navsim_recogdrive" / "configs" / "agent" / "recogdrive_2b.yaml"
    config.write_text(
        config.read_text().replace("\nsampling: ", "\nsmooth: 3                        # poses to smooth\n\nsampling: ")
    )
    done = options_tool("--check", root=copy)
    assert done.returncode == 1
    assert "docs/options.md is out of date: run python docs/tools/write_options.py" in done.stderr
    assert options_tool(root=copy).returncode == 0
    assert "| `agent.smooth` | `3` |  | poses to smooth |" in (copy / "docs" / "options.md").read_text()


def test_every_option_has_a_meaning() -> None:
    for line in (DOCS / "options.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.replace(r"\|", "").strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            assert cells[3], f"{cells[0]}: write a comment in the YAML file, or into the class's docstring"
