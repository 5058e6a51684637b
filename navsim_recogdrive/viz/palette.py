"""The colours of every picture: Okabe and Ito's palette for who drives where, viridis for rewards.

Both stay apart for the common kinds of colour blindness; lines that mean different things differ in dashes too.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255."""

Dashes = tuple[float, float]
"""Lengths of a dash and of the gap after it, in units of a picture."""

WHITE: Colour = (255, 255, 255)
INK: Colour = (38, 44, 52)
MUTED_INK: Colour = (96, 104, 114)

BLUE: Colour = (0, 114, 178)
VERMILLION: Colour = (213, 94, 0)
GREEN: Colour = (0, 158, 115)
ORANGE: Colour = (230, 159, 0)
SKY: Colour = (86, 180, 233)
PURPLE: Colour = (204, 121, 167)
YELLOW: Colour = (240, 228, 66)
BLACK: Colour = (0, 0, 0)

HUMAN = GREEN
HUMAN_DASHES: Dashes = (9.0, 5.0)
HISTORY: Colour = (120, 126, 134)
EGO: Colour = (44, 54, 66)
SAMPLES = YELLOW
"""Of samples without a reward."""

RIM_ALPHA = 0.4
"""Of the dark rim of samples: light grounds swallow yellow, and the lightest rewards."""

_PLANS = (BLUE, VERMILLION, SKY, BLACK)
_PLAN_DASHES: tuple[Dashes | None, ...] = (None, (14.0, 4.0), (3.0, 4.0))

BACKGROUND: Colour = (247, 246, 243)

AREA_FILL: dict[str, Colour] = {
    "walkway": (236, 232, 223),
    "carpark": (226, 226, 233),
    "drivable": (222, 225, 229),
    "lane": (222, 225, 229),
    "intersection": (214, 217, 222),
    "route": (200, 221, 240),
    "crosswalk": (244, 244, 246),
    "stop_line": (176, 132, 132),
}
AREA_EDGE: dict[str, Colour] = {
    "walkway": (214, 208, 196),
    "lane": (250, 250, 251),
    "crosswalk": (196, 200, 206),
    "carpark": (240, 240, 244),
}
LINE: dict[str, Colour] = {"centre_line": (188, 193, 200), "red_light": (178, 40, 60)}

AGENT_FILL: dict[str, Colour] = {
    "vehicle": (146, 158, 170),
    "pedestrian": PURPLE,
    "bicycle": ORANGE,
    "traffic_cone": (120, 112, 104),
    "barrier": (120, 112, 104),
    "czone_sign": (120, 112, 104),
    "generic_object": (120, 112, 104),
}
AGENT_NAMES = {"vehicle": "vehicle", "pedestrian": "pedestrian", "bicycle": "bicycle"}
"""Names in the legend; every other kind is an ``object``."""


class PlanStyle(NamedTuple):
    """How a plan's line looks."""

    colour: Colour
    dashes: Dashes | None


def plan_style(index: int) -> PlanStyle:
    """Style of the plan with that place in a view: four colours, then the same ones dashed in another way."""
    return PlanStyle(_PLANS[index % len(_PLANS)], _PLAN_DASHES[index // len(_PLANS) % len(_PLAN_DASHES)])


def reward_colour(reward: float, scale: tuple[float, float]) -> Colour:
    """Viridis without its palest tenth, which light grounds swallow.

    Args:
        reward: clipped to the scale.
        scale: rewards of the darkest and the lightest colour.
    """
    low, high = scale
    share = 0.0 if high <= low else float(np.clip((reward - low) / (high - low), 0.0, 1.0))
    level = np.array([[round(share * 0.9 * 255)]], dtype=np.uint8)
    blue, green, red = cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)[0, 0].tolist()
    return int(red), int(green), int(blue)


def darker(colour: Colour, share: float = 0.35) -> Colour:
    """``colour`` mixed with black."""
    red, green, blue = (round(channel * (1.0 - share)) for channel in colour)
    return red, green, blue


def signal_colours() -> list[Colour]:
    """Every colour that means something: what has few colours, such as a GIF, must keep these."""
    plans = [plan_style(index).colour for index in range(len(_PLANS))]
    rewards = [reward_colour(level / 31.0, (0.0, 1.0)) for level in range(32)]
    plain = [WHITE, INK, MUTED_INK, BACKGROUND, HUMAN, HISTORY, EGO, SAMPLES, *plans, *rewards]
    tables = [*AREA_FILL.values(), *AREA_EDGE.values(), *LINE.values(), *AGENT_FILL.values()]
    outlines = [darker(colour) for colour in AGENT_FILL.values()]
    return list(dict.fromkeys([*plain, *tables, *outlines]))
