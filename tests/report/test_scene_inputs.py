"""What the report reads beside the scores: facts of scenes, settings of runs, pictures."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navsim_recogdrive.report.pictures import (
    PictureFolder,
    ScenePictures,
    UnreadablePicture,
    data_uri,
    parse_folders,
    pictures_of,
)
from navsim_recogdrive.report.scene_facts import (
    SceneFacts,
    UnreadableFacts,
    logs_of_metric_cache,
    read_facts,
    read_settings,
)


def test_facts_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "scenes.csv"
    path.write_text("token,log_name,command,speed\na,log 1,left,4.5\nb,,,\n")
    facts = read_facts(path)
    assert facts["a"] == SceneFacts("log 1", "left", 4.5)
    assert (facts["b"].log_name, facts["b"].command, math.isnan(facts["b"].speed)) == ("", "", True)
    path.write_text("token\na\n")
    assert read_facts(path)["a"].command == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("log_name\nx\n", "no column token; expected some of token, log_name, command, speed"),
        ("token,command\na,forward\n", "the command of scene a is 'forward', expected left, straight, right, unknown"),
        ("token,speed\na,fast\n", "the speed of scene a is 'fast', expected m/s"),
    ],
)
def test_what_are_no_facts(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scenes.csv"
    path.write_text(content)
    with pytest.raises(UnreadableFacts, match=message):
        read_facts(path)
    with pytest.raises(UnreadableFacts, match="cannot be read"):
        read_facts(tmp_path / "none.csv")


def test_logs_from_the_paths_of_a_metric_cache(tmp_path: Path) -> None:
    listed, plain = tmp_path / "listed", tmp_path / "plain"
    (listed / "metadata").mkdir(parents=True)
    lines = "file_name\n/moved/away/log a/unknown/t1/metric_cache.pkl\n/moved/away/log b/unknown/t2/metric_cache.pkl\n"
    (listed / "metadata" / "listed_metadata_node_0.csv").write_text(lines)
    assert logs_of_metric_cache(listed) == {"t1": "log a", "t2": "log b"}
    (plain / "log c" / "unknown" / "t3").mkdir(parents=True)
    (plain / "log c" / "unknown" / "t3" / "metric_cache.pkl").write_bytes(b"")
    assert logs_of_metric_cache(plain) == {"t3": "log c"}
    with pytest.raises(UnreadableFacts, match="is no metric cache"):
        logs_of_metric_cache(tmp_path)


def test_settings_that_hydra_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    folder = tmp_path / "run" / "code" / "hydra"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "agent: {_target_: a.b.Agent, checkpoint_path: /x/last.ckpt, vlm: {path: '${oc.env:VLM_PATH,null}'}}\n"
        f"train_test_split: {{data_split: test}}\nmetric_cache_path: {cache}\n"
    )
    settings = read_settings(tmp_path / "run" / "scores.csv")
    assert settings.shown == {"agent": "Agent", "checkpoint": "/x/last.ckpt", "split": "test"}
    assert settings.metric_cache == cache
    (folder / "hydra.yaml").write_text("hydra: {runtime: {choices: {train_test_split: warmup_two_stage}}}\n")
    assert read_settings(tmp_path / "run" / "scores.csv").shown["split"] == "warmup_two_stage"
    (folder / "hydra.yaml").write_text("hydra: {runtime: cut\n")
    assert read_settings(tmp_path / "run" / "scores.csv").shown["split"] == "test"
    cache.rmdir()
    assert read_settings(tmp_path / "run" / "scores.csv").metric_cache is None
    assert read_settings(tmp_path / "elsewhere" / "scores.csv").shown == {}
    (folder / "config.yaml").write_text("agent: [not: what, we: expect]\n")
    assert read_settings(tmp_path / "run" / "scores.csv").shown == {}


def test_facts_from_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from navsim_recogdrive.agents.scene_facts import main

    def frame(token: str, command: list[int]) -> dict[str, object]:
        return {
            "token": token,
            "log_name": "log",
            "driving_command": np.array(command),
            "ego_dynamic_state": [3, 4, 0, 0],
        }

    frames = [frame("a", [1, 0, 0, 0]), frame("b", [0, 0, 1, 0]), frame("c", [0, 0, 0, 0])]
    logs, output = tmp_path / "logs", tmp_path / "scenes.csv"
    logs.mkdir()
    assert main([str(logs), str(output)]) == 2
    assert "holds no log" in capsys.readouterr().err
    (logs / "log.pkl").write_bytes(pickle.dumps(frames))
    assert main([str(logs), str(output)]) == 0
    assert [(fact.command, fact.speed) for fact in read_facts(output).values()] == [
        ("left", 5),
        ("right", 5),
        ("unknown", 5),
    ]
    (logs / "bad.pkl").write_bytes(pickle.dumps([{"token": "a"}]))
    assert main([str(logs), str(output)]) == 2
    assert "bad.pkl is no log of NAVSIM" in capsys.readouterr().err


def save(path: Path, width: int = 8, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, 6), "red").save(path)
    return path


def test_pictures_by_token_and_run(tmp_path: Path) -> None:
    both, own = tmp_path / "both", tmp_path / "own"
    for name in ("a.camera.png", "a.png", "ab.png"):
        save(both / name)
    save(own / "a.jpg")
    notes = {"caption": "one", "log_name": "log", "command": "left", "speed": 2, "trajectories": {"x": [[1, 0.5, 9]]}}
    (own / "a.json").write_text(json.dumps(notes))
    folders = parse_folders([str(both), f"RL={own}"], ["IL", "RL"])
    assert folders == [PictureFolder(both), PictureFolder(own, "RL")]
    assert [path.name for path in pictures_of("a", "IL", folders).files] == ["a.png", "a.camera.png"]
    found = pictures_of("a", "RL", folders)
    assert [path.name for path in found.files] == ["a.png", "a.camera.png", "a.jpg"]
    assert found.captions == ("one",)
    assert found.trajectories == {"x": ((1.0, 0.5),)}
    assert found.facts == SceneFacts("log", "left", 2.0)
    assert pictures_of("none", "RL", folders).files == ()


@pytest.mark.parametrize("token", ["/etc/passwd", "../a", "a**", "*", "[ab]", "..", "", "t" * 300, "a\0"])
def test_tokens_that_are_no_names_have_no_pictures(tmp_path: Path, token: str) -> None:
    for name in ("a", "b", "ab"):
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text("{}")
    assert pictures_of(token, "IL", [PictureFolder(tmp_path)]) == ScenePictures((), (), {}, SceneFacts())
    assert pictures_of("a", "IL", [PictureFolder(tmp_path)]).files == (tmp_path / "a.png",)


def test_a_token_with_signs_of_patterns_has_its_own_pictures(tmp_path: Path) -> None:
    own = save(tmp_path / "a[1]*.png")
    save(tmp_path / "a1.png")
    (tmp_path / "a[1]*.json").write_text('{"caption": "own"}')
    found = pictures_of("a[1]*", "IL", [PictureFolder(tmp_path)])
    assert (found.files, found.captions) == ((own,), ("own",))


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match="is no folder of pictures"):
        parse_folders([str(tmp_path / "none")], ["IL"])
    with pytest.raises(UnreadablePicture, match="pictures of 'RL': no run is called so; the runs are IL"):
        parse_folders([f"RL={tmp_path}"], ["IL"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold an object"),
        ('{"trajectories": []}', "must hold an object"),
        ('{"trajectories": {"x": []}}', "trajectory 'x' must be a list of finite"),
        ('{"trajectories": {"x": [[1]]}}', "trajectory 'x' must be a list of finite"),
        ('{"trajectories": {"x": [[1, NaN]]}}', "trajectory 'x' must be a list of finite"),
        ('{"command": "back"}', "command is 'back'"),
        ('{"speed": "fast"}', "speed is 'fast'"),
    ],
)
def test_notes_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UnreadablePicture, match=message):
        pictures_of("a", "", [PictureFolder(tmp_path)])


def test_pictures_become_data(tmp_path: Path) -> None:
    small, wide = save(tmp_path / "small.png"), save(tmp_path / "wide.png", 2000, "RGBA")
    assert base64.b64decode(data_uri(small).removeprefix("data:image/png;base64,")) == small.read_bytes()
    head, _, content = data_uri(wide).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (1280, 4)
        red, green, blue = picture.convert("RGB").getpixel((480, 1))
    assert red > 240
    assert max(green, blue) < 20
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UnreadablePicture, match="bad.png is no picture"):
        data_uri(tmp_path / "bad.png")
