"""What films show: trajectories that come out of noise, and plans that training makes better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from navsim_recogdrive.viz.bird_eye import fitting_window
from navsim_recogdrive.viz.drawable import DrawableScene, Planner
from navsim_recogdrive.viz.film import Shot
from navsim_recogdrive.viz.scene_view import FloatArray, Image, Plan, SampleGroup, SceneView
from navsim_recogdrive.viz.sheet import DEFAULT_HEIGHT, draw_grid, draw_sheet

_MOVE_S = 0.08
_REST_S = 0.3
_FIRST_S = 0.9
_LAST_S = 2.5


def denoising_film(
    scene: DrawableScene, planner: Planner, num_samples: int = 16, *, height: int = DEFAULT_HEIGHT, moves: int = 5
) -> list[Shot]:
    """How samples of one scene come out of noise: every state of the denoising, and smooth moves between them.

    The states are the planner's own; between them trajectories move along straight lines. Samples are coloured by the
    score that they get in the end, where the scene can be scored; the first sample, the scene's plan, is drawn as such
    when it is there.

    Args:
        scene: to plan for.
        planner: whose denoising is shown.
        num_samples: trajectories, each from its own noise.
        height: of the pictures, pixels.
        moves: pictures between two states; 0: states only.
    """
    states = planner.denoise(scene.observation, num_samples).astype(np.float64)
    final = states[:, -1]
    judgement = None if scene.judge is None else scene.judge(final.astype(np.float32))
    scores = None if judgement is None else judgement.scores
    steps = states.shape[1] - 1

    def view(poses: FloatArray, words: str) -> SceneView:
        samples = SampleGroup(poses, scores)
        return replace(scene.view, subtitle=words, samples=samples, plans=(), human=None)

    done = replace(
        view(final, f"after {steps} of {steps} denoising steps"),
        plans=(Plan("plan", final[0], None if scores is None else float(scores[0])),),
        human=scene.view.human,
    )
    # Noise reaches farther than any plan: pictures show where the trajectories end.
    window = fitting_window([done])

    def picture(shown: SceneView) -> Image:
        # Where the legend of the end has more rows, it has their room from the start: the map must not move.
        return draw_sheet(shown, height, window=window, layout_of=done)

    shots = []
    for step in range(steps):
        words = "noise" if step == 0 else f"after {step} of {steps} denoising steps"
        shots.append(Shot(picture(view(states[:, step], words)), _REST_S))
        for share in eased(moves):
            between = (1.0 - share) * states[:, step] + share * states[:, step + 1]
            moving = f"denoising step {step + 1} of {steps}"
            shots.append(Shot(picture(view(between, moving)), _MOVE_S))
    shots[0] = replace(shots[0], seconds=_FIRST_S)
    shots.append(Shot(picture(view(final, f"after {steps} of {steps} denoising steps")), _REST_S))
    shots.append(Shot(picture(done), _LAST_S))
    return shots


def training_film(
    scenes: Sequence[DrawableScene],
    planners: Mapping[str, Planner],
    *,
    columns: int = 3,
    side: int = 480,
    moves: int = 4,
) -> list[Shot]:
    """How the plans for the same scenes change from checkpoint to checkpoint.

    Args:
        scenes: at least one.
        planners: by the name of their checkpoint, in the order of training.
        columns: of the grid of scenes.
        side: of a scene's picture, pixels.
        moves: pictures between two checkpoints; 0: none.
    """
    plans = {
        name: np.stack([planner.plan_samples(scene.observation, 1)[0].poses for scene in scenes]).astype(np.float64)
        for name, planner in planners.items()
    }
    names = list(plans)

    def views(poses: FloatArray) -> list[SceneView]:
        return [
            replace(scene.view, plans=(Plan("plan", own),), camera=None)
            for scene, own in zip(scenes, poses, strict=True)
        ]

    # Plans of the first checkpoints are noise, which would set the scale.
    windows = [fitting_window([view]) for view in views(plans[names[-1]])]

    def picture(poses: FloatArray, heading: str) -> np.ndarray:
        return draw_grid(views(poses), columns, side, heading=heading, windows=windows)

    shots = []
    for index, name in enumerate(names):
        last = index == len(names) - 1
        shots.append(Shot(picture(plans[name], name), _LAST_S if last else 2 * _REST_S))
        if not last:
            for share in eased(moves):
                between = (1.0 - share) * plans[name] + share * plans[names[index + 1]]
                shots.append(Shot(picture(between, names[index + 1] if share > 0.5 else name), _MOVE_S))
    return shots


def eased(count: int) -> list[float]:
    """``count`` shares between 0 and 1, both left out, that start and end slowly."""
    at = (np.arange(count) + 1.0) / (count + 1.0)
    return list((at * at * (3.0 - 2.0 * at)).tolist())
