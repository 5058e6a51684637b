"""Environment variables, logs, images and maps: absent, partial, damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import Site, context, hydra_answer, only, problems, write_logs, write_maps

from navsim_recogdrive.doctor.checks import data, environment, maps, second_stage
from navsim_recogdrive.doctor.request import CHALLENGE_SPLIT


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """All three variables, and what they name."""
    root = tmp_path / "openscene"
    write_maps(root / "maps")
    write_logs(root, "trainval", ["log-a", "log-b", "log-c"])
    (tmp_path / "exp").mkdir()
    return {
        "OPENSCENE_DATA_ROOT": str(root),
        "NUPLAN_MAPS_ROOT": str(root / "maps"),
        "NAVSIM_EXP_ROOT": str(tmp_path / "exp"),
    }


def test_what_is_right_is_ok(variables: dict[str, str]) -> None:
    one = context(environment=variables, stage="cache", split="trainval")
    assert not problems([*environment.check(one), *data.check(one), *maps.check(one)])
    assert "trainval: 3 logs" in next(data.check(one)).found


@pytest.mark.parametrize("name", ["OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT", "NAVSIM_EXP_ROOT"])
@pytest.mark.parametrize(("stage", "status"), [(None, "warning"), ("evaluate", "error")])
def test_unset_variables(variables: dict[str, str], name: str, stage: str | None, status: str) -> None:
    del variables[name]
    (found,) = problems(environment.check(context(environment=variables, stage=stage)))
    assert (found.status, found.check) == (status, f"environment.{name}")


def test_training_from_a_cache_needs_no_maps(variables: dict[str, str]) -> None:
    del variables["NUPLAN_MAPS_ROOT"]
    assert not problems(environment.check(context(environment=variables, stage="train")))


@pytest.mark.parametrize("value", ["~/data", "'/data'", "/data ", "/nowhere/at/all"])
def test_variables_that_name_no_folder(variables: dict[str, str], value: str) -> None:
    variables["OPENSCENE_DATA_ROOT"] = value
    assert only(environment.check(context(environment=variables)), "error").check == "environment.OPENSCENE_DATA_ROOT"


def test_experiments_must_be_writable(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables["NAVSIM_EXP_ROOT"] = str(tmp_path / "new" / "exp")
    assert "(will be made)" in list(environment.check(context(environment=variables)))[-1].found
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    found = only(environment.check(context(environment=variables)), "error")
    assert f"{tmp_path} is read-only" in found.found
    variables["NAVSIM_EXP_ROOT"] = str(tmp_path / "file")
    (tmp_path / "file").touch()
    assert "is a file" in only(environment.check(context(environment=variables)), "error").found


def test_logs_without_images_are_counted_and_named(variables: dict[str, str]) -> None:
    images = Path(variables["OPENSCENE_DATA_ROOT"]) / "sensor_blobs" / "trainval"
    (images / "log-b" / "CAM_F0" / "0.jpg").unlink()
    (found,) = problems(data.check(context(environment=variables, stage="cache", split="trainval")))
    assert (found.status, found.check) == ("error", "data.images")
    assert "1 of 3 logs of trainval have no images of CAM_F0" in found.found
    assert found.found.endswith("log-b")


def test_three_cameras_need_three_folders(variables: dict[str, str]) -> None:
    steps = {"hydra": hydra_answer(cam_type="multi")}
    (found,) = problems(data.check(context(None, steps, variables, split="trainval")))
    assert "3 of 3 logs of trainval have no images of CAM_L0 and CAM_F0 and CAM_R0" in found.found


def test_empty_log_files(variables: dict[str, str]) -> None:
    (Path(variables["OPENSCENE_DATA_ROOT"]) / "navsim_logs" / "trainval" / "log-c.pkl").write_bytes(b"")
    (found,) = problems(data.check(context(environment=variables)))
    assert (found.status, "1 log files" in found.found) == ("error", True)


@pytest.mark.parametrize(("stage", "status"), [(None, "warning"), ("cache", "error"), ("train", "warning")])
def test_absent_logs(variables: dict[str, str], stage: str | None, status: str) -> None:
    root = Path(variables["OPENSCENE_DATA_ROOT"])
    (found,) = problems(data.check(context(environment=variables, stage=stage, split="mini")))
    assert (found.status, "holds no logs" in found.found) == (status, True)
    (root / "navsim_logs").rename(root / "logs")
    (found,) = problems(data.check(context(environment=variables, stage=stage)))
    assert (found.status, "has no navsim_logs/" in found.found) == (status, True)


def test_a_split_is_read_from_navsim(variables: dict[str, str], tmp_path: Path) -> None:
    site = Site(tmp_path / "site", {})
    config = site.navsim() / "planning/script/config/common/train_test_split"
    (config / "scene_filter").mkdir(parents=True)
    (config / "navtrain.yaml").write_text(
        "defaults:\n  - scene_filter: some # logs\n\ndata_split: trainval # on disk\n"
    )
    names = "log_names:\n- 'log-a'\n  # a comment\n- log-b\n- \"log-z\"\ntokens:\n- 0123\n"
    (config / "scene_filter" / "some.yaml").write_text(f"frame_interval: 1\n{names}")
    found = list(data.check(context(site, {}, variables, stage="cache")))
    assert "1 of 3 logs of navtrain are missing" in only(found, "error").found
    assert only(found, "error").found.endswith("log-z")
    assert "all 2 logs have images" in only(found, "ok").found
    (config / "scene_filter" / "some.yaml").write_text("log_names:\n- other\n")
    assert (
        "holds none of the 1 logs of navtrain (log-a, log-b, log-c)"
        in only(data.check(context(site, {}, variables, stage="cache"))).found
    )
    (config / "scene_filter" / "some.yaml").write_text("log_names: null\ntokens: null\n")
    assert not problems(data.check(context(site, {}, variables, stage="cache")))


def test_the_challenges_images_lie_in_folders_of_cameras(variables: dict[str, str], tmp_path: Path) -> None:
    root = Path(variables["OPENSCENE_DATA_ROOT"])
    (root / "navsim_logs" / "private_test_hard").mkdir()
    (root / "navsim_logs" / "private_test_hard" / "private_test_hard.pkl").write_bytes(b"log")
    camera = root / "sensor_blobs" / "private_test_hard" / "CAM_F0"
    camera.mkdir(parents=True)
    one = context(Site(tmp_path / "site", {}), {}, variables, stage="submit", split=CHALLENGE_SPLIT)
    assert only(problems(data.check(one))).check == "data.images"
    (camera / "0.jpg").write_bytes(b"image")
    assert not problems(data.check(one))
    assert f"{CHALLENGE_SPLIT}: 1 logs" in next(data.check(one)).found


def test_the_split_of_a_submission_is_that_of_navsims_version(tmp_path: Path) -> None:
    for major, split in ((1, "navtest"), (2, CHALLENGE_SPLIT)):
        site = Site(tmp_path / str(major), {})
        site.navsim(major)
        assert context(site, stage="submit").split == split
        assert context(site, stage="submit", split="warmup_two_stage").split == "warmup_two_stage"
        assert context(site, stage="evaluate").split == "navtest"
        assert context(site).split is None


@pytest.mark.parametrize(
    ("split", "folder", "files"),
    [
        ("warmup_two_stage", "synthetic_scene_pickles", 4),
        ("navhard_two_stage", "synthetic_scene_pickles", 4),
        (CHALLENGE_SPLIT, "openscene_meta_datas", 2),  # two scenes in each
    ],
)
@pytest.mark.parametrize(("stage", "status"), [(None, "warning"), ("submit", "error")])
def test_the_second_stage(
    variables: dict[str, str], tmp_path: Path, split: str, folder: str, files: int, stage: str | None, status: str
) -> None:
    site = Site(tmp_path / "site", {})
    filters = site.navsim() / "planning/script/config/common/train_test_split/scene_filter"
    filters.mkdir(parents=True)
    (filters / f"{split}.yaml").write_text("tokens:\n- a\n'reactive_synthetic_initial_tokens':\n- 'b'\n- c\n- d\n- e\n")
    one = context(site, {}, variables, stage=stage, split=split)
    root = Path(variables["OPENSCENE_DATA_ROOT"]) / split
    found = only(second_stage.check(one))
    assert (found.status, found.check) == (status, "data.second_stage")
    assert f"nothing in {root / folder} and {root / 'sensor_blobs'}" in found.found
    (root / "sensor_blobs" / "log").mkdir(parents=True)
    (root / folder).mkdir()
    assert f"nothing in {root / folder}" in only(second_stage.check(one), status).found
    for index in range(files):
        assert problems(second_stage.check(one))
        (root / folder / f"{index}.pkl").write_bytes(b"scene")
    assert f"{split}: {files} files of second-stage scenes" in only(second_stage.check(one), "ok").found
    everything = context(site, {}, variables)
    assert only(second_stage.check(everything)).found == only(second_stage.check(one)).found
    (root / folder / "0.pkl").unlink()
    found = only(second_stage.check(one), status)
    assert f"holds {files - 1} files of scenes, the second stage of {split} has at least {files}" in found.found


def test_splits_without_a_second_stage(variables: dict[str, str], tmp_path: Path) -> None:
    assert not list(second_stage.check(context(None, {}, variables, stage="evaluate")))
    assert not list(second_stage.check(context(None, {}, variables)))
    site = Site(tmp_path / "site", {})
    filters = site.navsim() / "planning/script/config/common/train_test_split/scene_filter"
    filters.mkdir(parents=True)
    one = context(site, {}, variables, stage="evaluate", split="navtest_two_stage")
    assert not list(second_stage.check(one)), "a split of somebody's own is not known here"
    (filters / "navtest_two_stage.yaml").write_text("reactive_synthetic_initial_tokens:\n- b\n")
    assert not list(second_stage.check(one)), "where it lies is not known"
    (filters / "navtest_two_stage.yaml").write_text("tokens: null\n")
    found = only(second_stage.check(one), "error")
    assert "lists no second-stage scenes of navtest_two_stage" in found.found


def test_maps_of_all_four_cities(variables: dict[str, str]) -> None:
    root = Path(variables["NUPLAN_MAPS_ROOT"])
    (root / "us-ma-boston" / "9.12.1817" / "map.gpkg").write_bytes(b"")
    (root / "sg-one-north" / "9.12.1817" / "map.gpkg").unlink()
    found = only(maps.check(context(environment=variables)))
    assert found.status == "error"
    assert "maps of sg-one-north, us-ma-boston are missing" in found.found
    (root / "nuplan-maps-v1.0.json").write_text("{")
    assert "cannot be read (JSONDecodeError" in only(maps.check(context(environment=variables))).found
    (root / "nuplan-maps-v1.0.json").unlink()
    assert "has no nuplan-maps-v1.0.json" in only(maps.check(context(environment=variables))).found


def test_read_only_maps(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (
        "read-only, and nuplan-devkit makes the folder .maplocks"
        in only(maps.check(context(environment=variables))).found
    )
