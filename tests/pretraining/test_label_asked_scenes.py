from __future__ import annotations

from pathlib import Path

import pytest
from label_scenes import busy_scene, scene, write_scenes

from navsim_recogdrive.pretraining.labelling.asked_scenes import CHUNK_SCENES, SceneFileError, asked_scenes
from navsim_recogdrive.pretraining.labelling.labeller import Labeller, Settings
from navsim_recogdrive.pretraining.labelling.templates import Templates

COUNT = 2 * CHUNK_SCENES + 3


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    return Labeller(Templates.load(families=["traffic_density", "planning_decision"]), Settings("a", "b"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_scenes(tmp_path, [busy_scene(str(n)) if n % 3 else scene(str(n), future=False) for n in range(COUNT)])


def test_processes_give_what_one_gives(path: Path, labeller: Labeller) -> None:
    alone = list(asked_scenes(path, labeller))
    assert [one.scene.token for one in alone] == [str(number) for number in range(COUNT)]
    assert [one.questions[0] is None for one in alone] == [number % 3 == 0 for number in range(COUNT)]
    shared = list(asked_scenes(path, labeller, workers=2))
    assert [one.scene.to_dict() for one in shared] == [one.scene.to_dict() for one in alone]
    assert [one.questions for one in shared] == [one.questions for one in alone]
    assert len(list(asked_scenes(path, labeller, CHUNK_SCENES + 1))) == CHUNK_SCENES + 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_line_far_down_is_named(path: Path, labeller: Labeller, workers: int) -> None:
    lines = path.read_text().splitlines()
    lines[CHUNK_SCENES + 4] = "{"
    path.write_text("\n".join(lines))
    with pytest.raises(SceneFileError, match=f"records.jsonl, line {CHUNK_SCENES + 5} is no scene record"):
        list(asked_scenes(path, labeller, workers=workers))
