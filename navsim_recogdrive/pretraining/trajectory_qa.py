"""Trajectory questions: one sample in InternVL's format for each scene, in the words of a prompt profile."""

from __future__ import annotations

from typing import Any

import numpy as np

from navsim_recogdrive.pretraining.records import SceneRecord
from navsim_recogdrive.vlm.answers import parse_trajectory
from navsim_recogdrive.vlm.conversation import ConversationWriter


class NoSample(ValueError):
    """A scene that gives no sample; the message says why."""


def trajectory_sample(record: SceneRecord, writer: ConversationWriter) -> dict[str, Any]:
    """The sample of one scene: ``id``, ``image``, ``width``, ``height``, ``conversations``.

    With several cameras ``image`` is a list, and ``width_list`` and ``height_list`` stand for the sizes, as InternVL
    has it. The conversation has three turns: ``system``, ``human`` with ``<image>`` for each image, and ``gpt``.

    Raises:
        NoSample: for a record without a full future, or one whose answer the text planner would not read back as it is
            written (a log that jumps, say).
    """
    if record.future_poses is None:
        raise NoSample("no full future")
    conversation = writer.write(record.past_poses, record.command_index, record.future_poses)
    parsed = parse_trajectory(conversation.answer)
    # Written with two decimals, where 0.01 and less is zero.
    if parsed.poses is None or parsed.outcome != "exact" or np.abs(parsed.poses - record.future_poses).max() > 0.02:
        raise NoSample("no plausible trajectory")
    views = record.cameras
    images: dict[str, Any] = (
        {"image": views[0].image, "width": views[0].width, "height": views[0].height}
        if len(views) == 1
        else {
            "image": [view.image for view in views],
            "width_list": [view.width for view in views],
            "height_list": [view.height for view in views],
        }
    )
    return {
        "id": record.token,
        **images,
        "conversations": [
            {"from": "system", "value": conversation.system},
            {"from": "human", "value": conversation.question},
            {"from": "gpt", "value": conversation.answer},
        ],
    }
