"""Facts in words: the values of the placeholders that question templates may use."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from navsim_recogdrive.pretraining.behaviour import Behaviour
from navsim_recogdrive.pretraining.facts import DENSITY_RADIUS_M, ROAD_USERS, AgentFacts, SceneFacts
from navsim_recogdrive.pretraining.labelling.counterfactual import choose_action, outcome

PLACEHOLDERS = {
    "command": "the navigation command: turn left, go straight, turn right, or none is given",
    "speed": "the ego's speed now",
    "acceleration": "the ego's acceleration along its axis now",
    "density": "the traffic within 50 m in a word, with counts by category",
    "objects": "the nearest annotated objects that the image shows, with box, place and motion",
    "vulnerable_road_users": "pedestrians and cyclists that the image shows, likewise",
    "lights": "how many lanes ahead have a red traffic light",
    "works": "cones, barriers and signs of roadworks that the image shows",
    "in_the_way": "who the ego meets in its way, the first one first",
    "agent": "one road user to ask about, by its box; scenes without one are not asked",
    "agent_future": "what this road user does within 4 s",
    "decision": "what the expert does within 4 s; scenes without a future are not asked",
    "action": "something that the expert does not do: if the ego vehicle ...; scenes without a future are not asked",
    "outcome": "what the annotated futures of the others say about it",
}
"""Names that a family's template may use, and what they stand for."""

MOST_LISTED = 12
"""Objects that one placeholder lists; the nearest."""

BOX_SCALE = 1000
"""Boxes are written in thousandths of the image's width and height, as InternVL knows them."""

Box = tuple[int, int, int, int]

_COMMANDS = {"left": "turn left", "straight": "go straight", "right": "turn right", "unknown": "none is given"}
_NAMES = {
    "bicycle": "cyclist",
    "traffic_cone": "traffic cone",
    "czone_sign": "roadworks sign",
    "generic_object": "object",
}
_WORKS = ("traffic_cone", "barrier", "czone_sign")
_SPEEDS = {
    "still": "stays where it is",
    "stop": "comes to a stop",
    "decelerate": "decelerates",
    "keep": "keeps its speed",
    "accelerate": "accelerates",
}
_PATHS = {
    "straight": "follows its lane or goes straight on",
    "lane change left": "changes to the lane on its left",
    "lane change right": "changes to the lane on its right",
    "turn left": "turns left",
    "turn right": "turns right",
    "reverse": "drives backwards",
}
_BOX = re.compile(r"\[\s*\[\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*\]\s*\]")


def placeholders(facts: SceneFacts) -> dict[str, str | None]:
    """The values of :data:`PLACEHOLDERS` for a scene; ``None`` where the scene has none."""
    record = facts.record
    agent = asked_agent(facts)
    action = choose_action(facts)
    return {
        "command": _COMMANDS[record.command],
        "speed": _speed(float(np.hypot(*record.velocity))),
        "acceleration": f"{float(record.acceleration[0]):+.1f} m/s²",
        "density": _density(facts),
        "objects": _listed([one for one in facts.agents if one.visible], facts, "No object is annotated in view."),
        "vulnerable_road_users": _listed(
            facts.vulnerable_road_users, facts, "No pedestrian and no cyclist is annotated in view."
        ),
        "lights": _lights(record.lights),
        "works": _listed(
            [one for one in facts.agents if one.visible and one.category in _WORKS],
            facts,
            "No cone, barrier or sign of roadworks is annotated in view.",
        ),
        "in_the_way": _in_the_way(facts),
        "agent": None if agent is None else grounded(agent, facts),
        "agent_future": None if agent is None or agent.behaviour is None else _future(agent.behaviour),
        "decision": None if facts.ego is None else f"The ego vehicle {_future(facts.ego)}",
        "action": None if action is None else action.words,
        "outcome": None if action is None else _outcome(facts),
    }


def asked_agent(facts: SceneFacts) -> AgentFacts | None:
    """The road user whose behaviour is asked about: visible, first those in the ego's way, then moving, then near."""
    known = [
        (one.conflict is None, one.behaviour.speed == "still", one.gap_m, one.track.track_token, one)
        for one in facts.agents
        if one.visible and one.behaviour is not None
    ]
    return min(known, key=lambda item: item[:4])[-1] if known else None


def box_of(agent: AgentFacts, facts: SceneFacts) -> Box | None:
    """Left, top, right, bottom of an object in the image, in thousandths; ``None`` if it is not there."""
    if agent.box is None:
        return None
    x, y = BOX_SCALE / facts.record.width, BOX_SCALE / facts.record.height
    box = agent.box
    return round(box.left * x), round(box.top * y), round(box.right * x), round(box.bottom * y)


def grounded(agent: AgentFacts, facts: SceneFacts) -> str:
    """An object by name and box, as InternVL writes them."""
    box = box_of(agent, facts)
    name = _name(agent)
    return name if box is None else f"<ref>{name}</ref><box>[[{', '.join(map(str, box))}]]</box>"


def boxes_in(text: str) -> list[Box]:
    """All boxes that a text holds."""
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in _BOX.findall(text)]


def _name(agent: AgentFacts) -> str:
    return _NAMES.get(agent.category, agent.category)


def _speed(value: float) -> str:
    return f"{value:.1f} m/s"


def _place(agent: AgentFacts) -> str:
    return f"{agent.gap_m:.0f} m away, {agent.where}"


def _motion(agent: AgentFacts) -> str:
    if agent.category not in ROAD_USERS:
        return ""
    if agent.behaviour is not None and agent.behaviour.speed == "still":
        return ", standing still"
    return f", moving at {_speed(agent.speed_mps)}"


def _listed(agents: Sequence[AgentFacts], facts: SceneFacts, nothing: str) -> str:
    lines = [f"- {grounded(one, facts)}: {_place(one)}{_motion(one)}" for one in agents[:MOST_LISTED]]
    if len(agents) > MOST_LISTED:
        lines.append(f"- and {len(agents) - MOST_LISTED} more, farther away")
    return "\n".join(lines) if lines else nothing


def _density(facts: SceneFacts) -> str:
    users = [one for one in facts.agents if one.category in ROAD_USERS and one.gap_m <= DENSITY_RADIUS_M]
    if not users:
        return f"{facts.density}: no road user within {DENSITY_RADIUS_M:.0f} m"
    counts = [f"{facts.counts[kind]} x {_NAMES.get(kind, kind)}" for kind in ROAD_USERS if kind in facts.counts]
    moving = sum(one.behaviour is not None and one.behaviour.speed != "still" for one in users)
    visible = sum(one.visible for one in users)
    return (
        f"{facts.density}: within {DENSITY_RADIUS_M:.0f} m, on all sides, {', '.join(counts)}; {moving} of them move, "
        f"{visible} are in the image"
    )


def _lights(lights: tuple[int, int]) -> str:
    red, other = lights
    if not red + other:
        return "No traffic light is recorded here. If the image shows one, trust the image."
    return (
        f"Recorded of the lanes around: {red} with a red light, {other} with a light that is not red. Which of them is "
        "the ego vehicle's, only the image tells."
    )


def _in_the_way(facts: SceneFacts) -> str:
    met = [(one.conflict.time_s, one.conflict.gap_m, one) for one in facts.agents if one.conflict is not None]
    met.sort(key=lambda item: item[:2])
    if not met:
        return "Nobody is in the ego vehicle's way within 4 s."
    return "\n".join(
        f"- {grounded(one, facts)}{'' if one.visible else ' (hardly visible)'}: {_place(one)}{_motion(one)}; "
        + (f"in the way now, {gap:.0f} m before the bumper" if time == 0.0 else f"in the way {time:.1f} s from now")
        for time, gap, one in met[:MOST_LISTED]
    )


def _future(behaviour: Behaviour) -> str:
    words = _SPEEDS[behaviour.speed]
    if behaviour.speed != "still":
        words += f" (from {behaviour.start_mps:.1f} to {behaviour.end_mps:.1f} m/s)"
    if behaviour.path is not None:
        words += f" and {_PATHS[behaviour.path]}"
    return f"{words} within the next {behaviour.horizon_s:g} s."


def _outcome(facts: SceneFacts) -> str:
    action = choose_action(facts)
    assert action is not None
    found = outcome(facts, action)
    if found.agent is None or math.isinf(found.gap_m):
        return "Nobody would come near within 4 s, if all others went on as they do."
    who = f"{grounded(found.agent, facts)} ({_place(found.agent)})"
    if found.words == "collision":
        return f"It would collide with {who} after {found.time_s:g} s, if that one went on as it does."
    if found.words == "close":
        return f"It would pass {who} at only {found.gap_m:.1f} m after {found.time_s:g} s, if all went on as they do."
    return (
        f"It would keep at least {found.gap_m:.1f} m from everybody within 4 s, if all went on as they do; nearest is "
        f"{who}. Lane borders and kerbs are not considered."
    )
