from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scene_records import agent, camera, changing_lanes, lanes_of, moving, record

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.pretraining.records import CATEGORIES, InvalidRecord, LaneAt, SceneRecord

NUMBERS = st.floats(-1e4, 1e4)


@given(
    arrays(np.float64, (12, 3), elements=NUMBERS),
    st.sets(st.integers(0, 11)).map(lambda rows: sorted(rows - {3})),
    st.sampled_from(CATEGORIES),
    arrays(np.float32, (8, 3), elements=st.floats(-100, 100, width=32)) | st.none(),
)
def test_json_gives_the_same_record_back(poses, absent, category, future) -> None:
    poses[absent] = np.nan
    before = record([agent(category, poses, lanes=lanes_of(changing_lanes()))], future_poses=future, lights=(3, 4))
    after = SceneRecord.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)))
    assert after.to_dict() == before.to_dict()
    np.testing.assert_array_equal(after.agents[0].poses, poses)
    assert after.past_poses.dtype == np.float32
    assert after.agents[0].lanes[0] == LaneAt("lane 0", "block", 0.0, False)
    assert (after.future_poses is None) == (future is None)


def test_what_a_policy_sees_is_what_an_observation_holds() -> None:
    scene = record(poses=moving(0.0, 0.0, 0.0, 6.5), command=2)
    observation = Observation(None, scene.past_poses, scene.velocity, scene.acceleration, scene.ego_status[:4])
    np.testing.assert_array_equal(observation.ego_status, scene.ego_status)
    assert (scene.command, scene.command_index) == ("right", observation.command_index)
    assert (scene.image, scene.width, scene.height) == ("sensor_blobs/trainval/log/front/0.jpg", 1920, 1080)


def _with(**changes) -> dict:
    return {**record([agent("vehicle", moving(10, 0))]).to_dict(), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_with(past_poses=[[0, 0, 0]]), r"past_poses must have shape \[4, 3\], found \[1, 3\]"),
        (_with(ego_status=[float("nan")] * 8), "ego_status holds values that are not finite"),
        (_with(cameras=[]), "one camera must be the front one, found"),
        (_with(lanes=[None]), "lanes must have 12 entries, or none, found 1"),
        (_with(colour="red"), "no scene record.*colour"),
        ({"token": "a"}, "no scene record"),
        ([], "no scene record"),
        (_with(agents=[{**_with()["agents"][0], "category": "tram"}]), "category must be one of .* found 'tram'"),
        (_with(agents=[{**_with()["agents"][0], "poses": [None] * 12}]), "that of the present finite"),
        (_with(agents=[{**_with()["agents"][0], "size": "large"}]), "size must be numbers"),
    ],
)
def test_what_contradicts_itself_is_refused(content, message) -> None:
    with pytest.raises(InvalidRecord, match=message):
        SceneRecord.from_dict(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "/abs/0.jpg"}, "must be a path below the data root"),
        ({"width": 0}, "size 0 x 1080"),
        ({"intrinsics": np.eye(2)}, "intrinsics must have shape"),
    ],
)
def test_cameras_are_checked(change, message) -> None:
    with pytest.raises(InvalidRecord, match=message):
        camera(**change)
