"""Quality control: what a rule can tell of an answer, and the judge's score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from navsim_recogdrive.pretraining.labelling.endpoint import Reply
from navsim_recogdrive.pretraining.labelling.templates import FilledFamily
from navsim_recogdrive.pretraining.labelling.wording import boxes_in
from navsim_recogdrive.pretraining.template_tokens import reserved_token
from navsim_recogdrive.vlm.conversation import IMAGE_MARK

HIGHEST_SCORE = 10.0

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_SCORE = re.compile(rf"\bscore\b\W{{0,5}}?({_NUMBER})", re.IGNORECASE)
_BOX_TAG = re.compile(r"<box>(.*?)</box>", re.DOTALL)


def fault(reply: Reply, filled: FilledFamily, forbidden: Sequence[str]) -> str | None:
    """What is wrong with an answer whoever judges it, in a few words; ``None`` if nothing is.

    Args:
        reply: the answer.
        filled: what was asked; its facts and question hold the boxes that exist.
        forbidden: words that must not occur, in lower case.
    """
    if not reply.finished:
        return "cut off"
    if not reply.text:
        return "empty"
    if IMAGE_MARK in reply.text or reserved_token(reply.text) is not None:
        return "special token"
    lowered = reply.text.lower()
    if any(word in lowered for word in forbidden):
        return "speaks of the facts"
    boxes = set(boxes_in(reply.text))
    if any(len(boxes_in(content)) != 1 for content in _BOX_TAG.findall(reply.text)):
        return "malformed box"
    given = set(boxes_in(filled.facts))
    if boxes - given - set(boxes_in(filled.question)):
        return "invented box"
    if filled.family.boxes == "all" and given - boxes:
        return "box left out"
    return None


def parse_score(text: str) -> float | None:
    """The score 0..10 in a judge's answer, a JSON object or anything that says ``score``; ``None`` if there is none."""
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        try:
            content = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return _in_range(content.get("score"))
    found = _SCORE.findall(text)
    return _in_range(found[-1]) if found else None


def _in_range(value: object) -> float | None:
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) and 0.0 <= score <= HIGHEST_SCORE and not isinstance(value, bool) else None
