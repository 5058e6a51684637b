"""Reading what NAVSIM's scoring scripts write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from score_files import V1, V2, scenes, write, write_two_stages, write_v1, write_v2

from navsim_recogdrive.report.runs import UnreadableRun, find_scores, read_runs, read_scores


def test_v1_with_a_failed_scene(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "a.csv", {"a": {}, "b": {"NC": 0.0, "score": 0.0}, "c": None, "d": {"score": 0.5}})
    run = read_scores(path, "a")
    assert run.benchmark == "PDMS"
    assert run.stage is None
    assert run.tokens == ("a", "b", "c", "d")
    assert run.valid.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(run.scores["score"], [1, 0, np.nan, 0.5])
    np.testing.assert_array_equal(run.scores["no_at_fault_collisions"], [1, 0, np.nan, 1])
    assert run.summary["mean"]["score"] == 0.5
    assert list(run.summary) == ["mean"]
    assert run.notes == ()


def test_v2_where_the_first_frames_have_no_two_frame_comfort(tmp_path: Path) -> None:
    rows = scenes(V2, {"a": {"score": 0.75}, "b": {}})
    rows[0]["two_frame_extended_comfort"] = ""
    path = write(tmp_path / "a.csv", V2, [*rows, {"token": "average_all_frames", "score": 0.875}])
    run = read_scores(path, "a")
    assert run.benchmark == "EPDMS"
    assert run.valid.all()
    np.testing.assert_array_equal(run.scores["two_frame_extended_comfort"], [np.nan, 1])
    assert run.notes == ()


def test_two_stages(tmp_path: Path) -> None:
    path = write_two_stages(
        tmp_path / "a.csv", {"a": {"score": 0.9}}, {"s": {"EP": 0.25, "score": 0.6}, "t": {"score": 0.8}}, combined=0.63
    )
    run = read_scores(path, "a")
    assert run.benchmark == "EPDMS"
    assert run.stage is not None
    assert run.stage.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(run.scores["ego_progress"], [1, 0.25, 1])
    np.testing.assert_array_equal(run.scores["score"], [0.9, 0.6, 0.8])
    found = {name: [values["score"], values["ego_progress"]] for name, values in run.summary.items()}
    assert list(found) == ["stage one", "stage two", "combined"]
    np.testing.assert_allclose(list(found.values()), [[0.9, 0.95], [0.7, 0.75], [0.63, np.nan]])
    assert run.notes == ()


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    rows = scenes(V1, {"a": {}, "b": {"score": 0.5}})
    lost = write(tmp_path / "lost.csv", V1, [rows[0], {"token": "average", "score": 0.75}])
    assert read_scores(lost, "a").notes == ("its rows have mean 1.0000, NAVSIM wrote 0.7500: the file was changed",)
    cut = write(tmp_path / "cut.csv", V1, rows)
    assert "mean is missing" in read_scores(cut, "a").notes[0]


def test_a_folder_gives_its_newest_scores(tmp_path: Path) -> None:
    for stamp in ("2026.01.02.03.04.05", "2026.01.02.03.04.06"):
        write_v1(tmp_path / "score_il" / stamp / f"{stamp}.csv", {"a": {}})
    (tmp_path / "score_il" / "metadata.csv").write_text("file_name\nx\n")
    path, notes = find_scores(tmp_path / "score_il")
    assert path.name == "2026.01.02.03.04.06.csv"
    assert notes == ("the newest of 2 score files in its folder",)
    assert read_runs([str(tmp_path / "score_il")])[0].name == "score_il"


def test_names_are_the_shortest_ends_that_differ(tmp_path: Path) -> None:
    paths = [write_v1(tmp_path / seed / f"{kind}.csv", {"a": {}}) for seed in ("s0", "s1") for kind in ("il", "rl")]
    assert [run.name for run in read_runs([str(path) for path in paths])] == ["s0/il", "s0/rl", "s1/il", "s1/rl"]
    assert [run.name for run in read_runs([f"x={paths[0]}", str(paths[1])])] == ["x", "rl"]


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "lr=1.csv", {"a": {}})
    assert read_runs([str(path)])[0].name == "lr=1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lacks the column token and valid"),
        ("token,valid,score\n", "holds a header and no row"),
        ("token,valid,score\na,True,1\n", "neither PDMS nor EPDMS: for PDMS it lacks comfort, dri"),
        (f"token,valid,{','.join(V1)}\na,True,1,1,1\n", "line 2 is cut off, it has 5 of 9 values"),
        (f",token,valid,{','.join(V1)}\n5\n6,b,True,1,1,1,1,1,1,1\n", "line 2 is cut off, it has 1 of 10 values"),
        (f",token,valid,{','.join(V1)}\n5,a\n6,b,True,1,1,1,1,1,1,1\n", "line 2 is cut off, it has 2 of 10 values"),
        (f"token,valid,{','.join(V1)}\na,True,1,1,1,1,1,1,1,1\n", "line 2 has more values than the header has names"),
        (f"token,valid,{','.join(V1)}\na,True,1,1,1,1,1,1,nine\n", "score of scene a is 'nine', expected a number"),
        (f"token,valid,{','.join(V1)}\na,True,1,1,1,1,1,1,90.1\n", "score of scene a is 90.1, expected 0 to 1"),
        (f"token,valid,{','.join(V1)}\na,yes,1,1,1,1,1,1,1\n", "valid of scene a is 'yes', expected True or False"),
        (f"token,valid,{','.join(V1)}\n" + "a,True,1,1,1,1,1,1,1\n" * 2, "1 scenes stand twice, a for one"),
        (f"token,valid,{','.join(V1)}\naverage,True,1,1,1,1,1,1,1\n", "holds no scene"),
        (f"token,valid,{','.join(V1)}\n,True,1,1,1,1,1,1,1\n", "a row has no token"),
    ],
)
def test_what_is_no_score_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(UnreadableRun, match=message) as found:
        read_scores(path, "a")
    assert str(path) in str(found.value)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one, two = write_v1(tmp_path / "one.csv", {"a": {}}), write_v2(tmp_path / "two.csv", {"a": {}})
    staged = write_two_stages(tmp_path / "staged.csv", {"a": {}}, {"b": {}}, 1.0)
    with pytest.raises(UnreadableRun, match="one has PDMS, two has EPDMS: these scores cannot be compared"):
        read_runs([str(one), str(two)])
    with pytest.raises(UnreadableRun, match="two has EPDMS, staged has EPDMS in two stages"):
        read_runs([str(two), str(staged)])
    with pytest.raises(UnreadableRun, match="two runs are called 'x'"):
        read_runs([f"x={one}", f"x={one}"])
    with pytest.raises(UnreadableRun, match="two runs are called 'one'"):
        read_runs([str(one), str(one)])
    with pytest.raises(UnreadableRun, match="no such file or folder"):
        read_runs([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableRun, match="holds no score CSV"):
        read_runs([str(tmp_path / "empty")])
