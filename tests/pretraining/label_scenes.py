"""Small scenes for labelling: a straight road, the front camera, whoever a test puts on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from label_server import Answer, Behaviour, Body, is_probe, system_of, text_of
from PIL import Image

from navsim_recogdrive.pretraining.labelling.wording import boxes_in
from navsim_recogdrive.pretraining.records import TRACK_TIMES_S, AgentTrack, CameraView, SceneRecord

WIDTH, HEIGHT = 192, 108
_TIMES = np.array(TRACK_TIMES_S)


def agent(
    token: str, x: float, y: float, speed: float = 0.0, category: str = "vehicle", heading: float = 0.0
) -> AgentTrack:
    """Somebody who keeps a speed along a heading."""
    poses = np.stack(
        [x + speed * np.cos(heading) * _TIMES, y + speed * np.sin(heading) * _TIMES, np.full(len(_TIMES), heading)],
        axis=1,
    )
    size = (4.5, 1.9, 1.6) if category == "vehicle" else (0.6, 0.6, 1.7)
    velocity = np.array([speed * np.cos(heading), speed * np.sin(heading)])
    return AgentTrack(token, category, size, poses, size[2] / 2, velocity)


def scene(
    token: str,
    agents: Sequence[AgentTrack] = (),
    speed: float = 8.0,
    acceleration: float = 0.0,
    future: bool = True,
    lights: tuple[int, int] = (0, 0),
) -> SceneRecord:
    """An ego that drives straight on at a constant acceleration, until it stands."""

    def poses(times: np.ndarray) -> np.ndarray:
        until = np.minimum(times, -speed / acceleration) if acceleration < 0 else times
        x = speed * until + acceleration * until**2 / 2
        return np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1).astype(np.float32)

    camera = CameraView(
        name="front",
        image=f"images/{token}.jpg",
        width=WIDTH,
        height=HEIGHT,
        intrinsics=np.array([[120.0, 0, WIDTH / 2], [0, 120.0, HEIGHT / 2], [0, 0, 1]]),
        rotation=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
        translation=np.array([1.5, 0.0, 1.6]),
        distortion=np.zeros(5),
    )
    return SceneRecord(
        token=token,
        log_name="log",
        map_name="us-nv-las-vegas-strip",
        cameras=(camera,),
        past_poses=poses(_TIMES[:4]),
        ego_status=np.array([0, 1, 0, 0, speed, 0, acceleration, 0], dtype=np.float32),
        future_poses=poses(_TIMES[4:]) if future else None,
        agents=tuple(agents),
        lights=lights,
    )


def busy_scene(token: str) -> SceneRecord:
    """A leader, a pedestrian at the side, a cone."""
    return scene(
        token,
        [
            agent("leader", 20.0, 0.0, 8.0),
            agent("walker", 15.0, -4.0, 1.0, "pedestrian", np.pi / 2),
            agent("cone", 12.0, 3.0, 0.0, "traffic_cone"),
        ],
        lights=(1, 2),
    )


def write_scenes(folder: Path, scenes: Sequence[SceneRecord]) -> Path:
    """Records and images below ``folder``; returns the file of records."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(scenes):
        Image.new("RGB", (one.width, one.height), (40 * number % 256, 80, 80)).save(folder / one.image, quality=50)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in scenes))
    return path


def sensible(body: Body) -> Behaviour:
    """What a good VLM would answer: drafts, better answers with the boxes of the facts, and scores."""
    if is_probe(body):
        return Answer("grey")
    system, user = system_of(body), text_of(body)
    if "examiner" in system:
        return Answer('{"reason": "agrees", "score": 8}')
    if "editor" in system:
        facts = user.split("Question:")[0]
        boxes = "".join(f" <ref>one</ref><box>[[{', '.join(map(str, box))}]]</box>" for box in boxes_in(facts))
        return Answer(f"A careful answer.{boxes}")
    return Answer("A draft.")
