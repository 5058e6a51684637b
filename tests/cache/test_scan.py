from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_cache import IDENTITY, LAYOUT, cut, dump, flip, write_cache, write_scene

from navsim_recogdrive.cache import scan
from navsim_recogdrive.cache.failed import FailedFeature
from navsim_recogdrive.cache.scan import DAMAGED, FAILED, FOREIGN, PARTIAL, count_origins, remove, scan_cache


@pytest.mark.parametrize("mode", ["bf16", "int8", "fp32"])
@pytest.mark.parametrize("full", [False, True])
def test_a_whole_cache(tmp_path: Path, mode: str, full: bool) -> None:
    write_cache(tmp_path, mode=mode)
    (tmp_path / "_recogdrive").mkdir()
    report = scan_cache(tmp_path, LAYOUT, full=full)
    assert (report.scenes, report.findings, report.incomplete) == (4, [], [])
    assert report.states == {(mode, 900, 64): 4}
    sizes = sum(path.stat().st_size for path in tmp_path.glob("*/*/state.gz"))
    assert report.file_bytes["state"] == sizes
    assert set(report.file_bytes) == set(LAYOUT.files)
    assert scan_cache(tmp_path, LAYOUT, ["log_1", "absent"]).scenes == 2


@pytest.mark.parametrize("name", LAYOUT.files)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.999])
def test_the_quick_scan_finds_a_file_that_was_cut_off(tmp_path: Path, name: str, keep: float) -> None:
    folders = write_cache(tmp_path)
    cut(folders[1] / f"{name}.gz", keep)
    report = scan_cache(tmp_path, LAYOUT)
    (finding,) = report.misleading
    assert finding.path == folders[1] / f"{name}.gz"
    assert finding.kind == DAMAGED
    assert finding.scene == f"log_1/{folders[1].name}"
    assert str(finding.path) in finding.reason
    assert report.scenes == 3


def test_the_quick_scan_is_quick_and_the_full_scan_finds_flipped_bits(tmp_path: Path) -> None:
    folders = write_cache(tmp_path)
    flip(folders[0] / "state.gz")
    assert not scan_cache(tmp_path, LAYOUT).findings, "it read the whole file"
    (finding,) = scan_cache(tmp_path, LAYOUT, full=True).misleading
    assert finding.path == folders[0] / "state.gz"
    flip(folders[2] / "ego.gz")
    assert len(scan_cache(tmp_path, LAYOUT).misleading) == 1, "small files are read whole"


def test_large_files_of_image_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their size is not known from their beginning; what the end of one that was cut off says is hardly ever likely."""
    layout = replace(LAYOUT, hidden_state=None)
    folders = write_cache(tmp_path)
    read: list[Path] = []
    read_content = scan.read_content
    monkeypatch.setattr(scan, "read_content", lambda path: read.append(path) or read_content(path))
    assert not scan_cache(tmp_path, layout).findings
    assert "state.gz" not in {path.name for path in read}, "it read whole files"
    cut(folders[0] / "state.gz", 0.95)
    (finding,) = scan_cache(tmp_path, layout).findings
    assert finding.path == folders[0] / "state.gz"
    # One whose end says by chance what a whole file would say.
    path = folders[1] / "state.gz"
    path.write_bytes(path.read_bytes()[:70_000] + (75_000).to_bytes(4, "little"))
    os.utime(path, (1.6e9, 1.6e9))
    assert len(scan_cache(tmp_path, layout).findings) == 1
    os.utime(path)
    assert len(scan_cache(tmp_path, layout).findings) == 2, "a killed run may have been writing over a whole scene"


def test_scenes_that_lack_files(tmp_path: Path) -> None:
    folders = write_cache(tmp_path)
    (folders[0] / "token.gz").unlink()
    cut(folders[0] / "trajectory.gz")
    (folders[1].parent / "empty").mkdir()
    report = scan_cache(tmp_path, LAYOUT)
    assert report.incomplete == [folders[0]]
    assert [finding.path for finding in report.findings] == [folders[0] / "trajectory.gz"]
    assert not report.misleading, "NAVSIM computes this scene again by itself"
    assert report.scenes == 3


def test_failed_and_foreign_features_and_unfinished_files(tmp_path: Path) -> None:
    folders = write_cache(tmp_path, origin=IDENTITY.origin)
    dump(folders[0] / "token.gz", {"token": FailedFeature("no camera image")})
    write_scene(folders[1], origin=replace(IDENTITY, prompt="c" * 64).origin)
    write_scene(folders[2])
    (folders[3] / "state.gz.123.partial").write_bytes(b"x")
    assert scan_cache(tmp_path, LAYOUT).scenes == 3, "without an identity, origins are not compared"
    report = scan_cache(tmp_path, LAYOUT, identity=IDENTITY)
    kinds = {finding.path.parent: finding.kind for finding in report.findings}
    assert kinds == {folders[0]: FAILED, folders[1]: FOREIGN, folders[3]: PARTIAL}
    assert "no camera image" in next(one.reason for one in report.findings if one.kind == FAILED)
    assert {finding.path.parent for finding in report.misleading} == {folders[0], folders[1]}
    assert report.scenes == 2


def test_files_in_the_root(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / "_recogdrive").mkdir()
    for name in ("README", "estimate.1.partial", "_recogdrive/estimate.2.partial", "_recogdrive/identity.json"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1.6e9, 1.6e9))
    report = scan_cache(tmp_path, LAYOUT)
    assert report.loose == [tmp_path / "README", tmp_path / "estimate.1.partial"]
    assert len(remove(report.findings)) == 2
    assert not list(tmp_path.rglob("*.partial"))
    assert (tmp_path / "README").exists()


@pytest.mark.parametrize("vanishing", ["state.gz", "token.gz", "ego.gz.1.partial", ""])
def test_what_another_process_removes_meanwhile_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vanishing: str
) -> None:
    folders = write_cache(tmp_path)
    (folders[0] / "ego.gz.1.partial").write_bytes(b"x")
    listing = scan._entries

    def then_vanish(folder: Path) -> list[os.DirEntry[str]]:
        entries = listing(folder)
        if vanishing and folder == folders[0]:
            (folder / vanishing).unlink()
        elif not vanishing and folder == folders[0].parent:
            shutil.rmtree(folders[0])
        return entries

    monkeypatch.setattr(scan, "_entries", then_vanish)
    report = scan_cache(tmp_path, LAYOUT)
    assert [finding.kind for finding in report.findings if finding.kind != PARTIAL] == []
    assert report.scenes == (4 if vanishing.endswith(".partial") else 3)


def test_a_file_that_vanishes_while_it_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = write_cache(tmp_path)
    check = scan._check_hidden_state

    def late(path: Path, *arguments: Any) -> None:
        if path.parent == folders[0]:
            path.unlink()
        check(path, *arguments)

    monkeypatch.setattr(scan, "_check_hidden_state", late)
    report = scan_cache(tmp_path, LAYOUT)
    assert (report.scenes, report.findings, report.incomplete) == (3, [], [folders[0]])


def test_count_origins(tmp_path: Path) -> None:
    folders = write_cache(tmp_path, origin=IDENTITY.origin)
    write_scene(folders[1])
    write_scene(folders[2], origin=b"another!")
    cut(folders[3] / "state.gz", 0.0)
    assert count_origins(tmp_path, "state.gz") == {IDENTITY.origin: 1, b"another!": 1}
    assert scan_cache(tmp_path, LAYOUT).origins == {IDENTITY.origin: 1, b"another!": 1}


def test_remove(tmp_path: Path) -> None:
    folders = write_cache(tmp_path)
    cut(folders[0] / "state.gz")
    findings = scan_cache(tmp_path, LAYOUT).findings
    assert remove(findings) == findings
    assert sorted(path.name for path in folders[0].iterdir()) == ["ego.gz", "token.gz", "trajectory.gz"]
    assert not scan_cache(tmp_path, LAYOUT).findings


def test_remove_leaves_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    folders = write_cache(tmp_path)
    for folder in folders[:2]:
        cut(folder / "state.gz")
        os.utime(folder / "state.gz")
    findings = scan_cache(tmp_path, LAYOUT).findings
    assert len(findings) == 2

    def finish() -> None:
        time.sleep(0.3)
        write_scene(folders[0])

    writer = threading.Thread(target=finish)
    writer.start()
    removed = remove(findings, settle_s=1.0)
    writer.join()
    assert [finding.path for finding in removed] == [folders[1] / "state.gz"]
    assert scan_cache(tmp_path, LAYOUT).scenes == 3
