"""What comes out of a plan: a table, a JSON file, a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import DRIVING_COMMANDS, POSE_INTERVAL_S
from navsim_recogdrive.plan.situation import Situation

_HEIGHT = 720


@dataclass(frozen=True, eq=False)
class Planned:
    """Trajectories for a situation.

    Attributes:
        situation: what was planned for.
        trajectories: ``[N, 8, 3]``, metres and radians, present ego frame.
        scores: N of each name, empty where plans were not scored.
        settings: what planned, for the record: plain values.
    """

    situation: Situation
    trajectories: NDArray[np.float32]
    scores: dict[str, list[float]]
    settings: dict[str, Any]


def as_text(planned: Planned) -> str:
    """The first trajectory as a table, the samples in a line each, scores and the human's trajectory where known."""
    situation, observation = planned.situation, planned.situation.observation
    speed = float(np.hypot(*observation.velocity))
    lines = [
        f"{situation.title}: command {DRIVING_COMMANDS[observation.command_index]}, {speed:.1f} m/s",
        *situation.notes,
        "",
        "plan, ego frame (x ahead, y left)",
        "    t [s]    x [m]    y [m]  heading [rad]",
    ]
    for step, (x, y, heading) in enumerate(planned.trajectories[0].tolist(), start=1):
        lines.append(f"{step * POSE_INTERVAL_S:9.1f}{x:9.2f}{y:9.2f}{heading:15.3f}")
    if len(planned.trajectories) > 1 or planned.scores:
        lines += ["", *_samples(planned)]
    if situation.human is not None:
        average, final = _displacement(planned.trajectories[0], situation.human)
        lines += ["", f"from the human's trajectory: {average:.2f} m on average, {final:.2f} m after 4 s"]
    return "\n".join(lines) + "\n"


def _samples(planned: Planned) -> list[str]:
    """A line per trajectory, then one per sub-score; the first trajectory is the plan above."""
    score = planned.scores.get("score")
    lines = ["   sample  x(4 s)   y(4 s)" + ("" if score is None else "     score")]
    for index, trajectory in enumerate(planned.trajectories):
        row = f"{index:9d}{trajectory[-1, 0]:8.2f}{trajectory[-1, 1]:9.2f}"
        lines.append(row + ("" if score is None else f"{score[index]:10.4f}"))
    if planned.scores:
        width = max(len(name) for name in planned.scores)
        lines += ["", f"{'':{width}}  sample 0" + ("      mean" if len(planned.trajectories) > 1 else "")]
        for name, values in planned.scores.items():
            row = f"{name.replace('_', ' '):{width}}{values[0]:10.4f}"
            lines.append(row + (f"{np.mean(values):10.4f}" if len(values) > 1 else ""))
    return lines


def _displacement(poses: NDArray[np.float32], human: NDArray[np.float32]) -> tuple[float, float]:
    distance = np.linalg.norm(poses[:, :2] - human[:, :2], axis=1)
    return float(distance.mean()), float(distance[-1])


def as_dict(planned: Planned) -> dict[str, Any]:
    """Everything as plain values, for JSON."""
    situation, observation = planned.situation, planned.situation.observation
    return {
        "scene": {"title": situation.title, "token": situation.token, "notes": list(situation.notes)},
        "input": {
            "history": observation.past_poses.tolist(),
            "velocity": observation.velocity.tolist(),
            "acceleration": observation.acceleration.tolist(),
            "command": DRIVING_COMMANDS[observation.command_index],
        },
        "settings": planned.settings,
        "frame": "ego at present: origin at the rear axle, x ahead, y left; metres, radians",
        "times_s": [POSE_INTERVAL_S * (step + 1) for step in range(planned.trajectories.shape[1])],
        "plans": planned.trajectories.tolist(),
        "scores": planned.scores,
        "human": None if situation.human is None else situation.human.tolist(),
    }


def picture(planned: Planned) -> NDArray[np.uint8]:
    """``[H, W, 3]`` uint8 RGB: the front camera and the bird's-eye view beside each other, with all trajectories."""
    import cv2

    from navsim_recogdrive.viz.bird_eye import draw_bird_eye
    from navsim_recogdrive.viz.camera import draw_camera
    from navsim_recogdrive.viz.scene_view import Plan, SampleGroup

    trajectories = planned.trajectories.astype(np.float64)
    several = len(trajectories) > 1
    scores = planned.scores.get("score")
    view = replace(
        planned.situation.view(),
        human=None if planned.situation.human is None else planned.situation.human.astype(np.float64),
        plans=(Plan("ReCogDrive", trajectories[0], None if scores is None else scores[0]),),
        samples=SampleGroup(trajectories, None if scores is None else np.array(scores)) if several else None,
    )
    bird_eye = draw_bird_eye(view, (_HEIGHT, _HEIGHT))
    camera = draw_camera(view, legend=False)
    height, width = camera.shape[:2]
    scaled = cv2.resize(camera, (round(width * _HEIGHT / height), _HEIGHT), interpolation=cv2.INTER_AREA)
    return np.concatenate([scaled, bird_eye], axis=1)


def write(planned: Planned, path: Path) -> None:
    """Write a ``.json`` file or a picture, by the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(as_dict(planned), indent=1) + "\n", encoding="utf-8")
        return
    from PIL import Image

    Image.fromarray(picture(planned)).save(path)
