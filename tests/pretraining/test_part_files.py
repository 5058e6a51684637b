from __future__ import annotations

import json

import pytest

from navsim_recogdrive.pretraining.part_files import OtherSettings, PartFiles

SETTINGS = {"format": 1, "cameras": ["front"]}


@pytest.fixture
def parts(tmp_path) -> PartFiles:
    return PartFiles(tmp_path / "data.jsonl")


def test_parts_are_merged_in_the_order_of_the_logs(parts) -> None:
    parts.start(SETTINGS)
    parts.write("b", [{"id": 3}], {"scenes": 1})
    parts.write("a", [{"id": 1}, {"id": "zwei: ü"}], {"scenes": 2})
    parts.write("empty", [], {"scenes": 0})
    assert not parts.finished(SETTINGS)
    parts.merge(["a", "b", "empty"], {"settings": SETTINGS})
    assert [json.loads(line)["id"] for line in parts.output.read_text("utf-8").splitlines()] == [1, "zwei: ü", 3]
    assert parts.finished(SETTINGS)
    assert sorted(path.name for path in parts.output.parent.iterdir()) == ["data.jsonl", "data.jsonl.summary.json"]


def test_a_part_counts_once_its_report_is_there(parts) -> None:
    parts.start(SETTINGS)
    parts.write("a", [{"id": 1}], {"scenes": 1})
    assert parts.report("a") == {"scenes": 1}
    report = parts.folder / "a.json"
    whole = report.read_text()
    report.write_text(whole[:-3])
    assert parts.report("a") is None, "cut off"
    report.unlink()
    assert parts.report("a") is None, "killed between the two"
    report.write_text(whole)
    (parts.folder / "a.jsonl").unlink()
    assert parts.report("a") is None
    with pytest.raises(FileNotFoundError):
        parts.merge(["a"], {"settings": SETTINGS})
    assert not parts.output.exists()


def test_half_written_files_of_a_killed_run_are_removed(parts) -> None:
    parts.start(SETTINGS)
    (parts.folder / "merged.jsonl.1f.partial").write_text("half")
    parts.start(SETTINGS)
    assert [path.name for path in parts.folder.iterdir()] == ["settings.json"]


def test_samples_that_are_no_json_leave_nothing_behind(parts) -> None:
    parts.start(SETTINGS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        parts.write("a", [{"x": float("nan")}], {})
    assert [path.name for path in parts.folder.iterdir()] == ["settings.json"]


def test_other_settings_are_refused(parts) -> None:
    parts.start(SETTINGS)
    parts.start(SETTINGS)
    with pytest.raises(OtherSettings, match=r"cameras: \['front'\] then, \['left'\] now"):
        parts.start({**SETTINGS, "cameras": ["left"]})
    parts.write("a", [], {})
    parts.merge(["a"], {"settings": SETTINGS})
    with pytest.raises(OtherSettings, match="other settings .format: 1 then, 2 now"):
        parts.finished({**SETTINGS, "format": 2})
    parts.summary.unlink()
    with pytest.raises(OtherSettings, match="is not ours"):
        parts.finished(SETTINGS)
