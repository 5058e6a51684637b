"""A scene's prompt and answer as the turns of a chat: what a VLM is trained on.

Training data in InternVL's format holds text, the policy works with token ids. Both come from one prompt profile, and
encoding the turns with the chat template gives back the policy's token ids.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, cast

from numpy.typing import ArrayLike

from navsim_recogdrive.observation import DRIVING_COMMANDS
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile, Tokenizer, segment_text

IMAGE_MARK = "<image>"
"""Stands for an image in the text of a turn."""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

_BEFORE_IMAGE = re.compile(r"<\|im_start\|>system\n(?P<system>.*)<\|im_end\|>\n<\|im_start\|>user\n(?P<user>.*)", re.S)
_AFTER_COMMAND = re.compile(r"(?P<user>.*)<\|im_end\|>\n<\|im_start\|>assistant\n", re.S)


@dataclass(frozen=True)
class Conversation:
    """System message, question (with :data:`IMAGE_MARK` for each image) and answer."""

    system: str
    question: str
    answer: str


@dataclass(frozen=True)
class ConversationWriter:
    """Writes conversations of one profile; holds text alone, so it is small and needs no tokenizer any more.

    Attributes:
        profile: with every segment as text.
        system: the system message, the same for every scene.
    """

    profile: PromptProfile
    system: str

    @staticmethod
    def of(profile: PromptProfile, tokenizer: Tokenizer | None) -> ConversationWriter:
        """Spell a profile out.

        Args:
            profile: any profile for the chat template of InternVL and Qwen (``<|im_start|>role``).
            tokenizer: spells out segments of token ids; ``None`` for a profile of text.

        Raises:
            PromptError: without a tokenizer for a profile of token ids, for one of another vocabulary, or for a
                profile that is not one system message and one turn of the user.
        """
        asked = ("before_image", "question_head", "before_command", "after_command")
        text = {
            name: segment_text(getattr(profile, name), tokenizer) for name in (*asked, "answer_head", "answer_tail")
        }
        found = hashlib.sha256("".join(text[name] for name in asked).encode()).hexdigest()
        if profile.text_sha256 not in (None, found):
            raise PromptError("the prompt profile's token ids stand for other text in this tokenizer's vocabulary")
        spelt = replace(profile, **cast(dict[str, Any], text))
        head = _BEFORE_IMAGE.fullmatch(str(spelt.before_image))
        tail = _AFTER_COMMAND.fullmatch(str(spelt.after_command))
        if head is None or tail is None or TURN_START in head["system"] + head["user"] + tail["user"]:
            raise PromptError(
                "training data needs a profile with one system message and one turn of the user: before_image must be "
                "'<|im_start|>system\\n...<|im_end|>\\n<|im_start|>user\\n...' and after_command must end in "
                "'<|im_end|>\\n<|im_start|>assistant\\n'"
            )
        return ConversationWriter(replace(spelt, before_image=head["user"], after_command=tail["user"]), head["system"])

    def write(self, past_poses: ArrayLike, driving_command: int, future_poses: ArrayLike) -> Conversation:
        """The conversation of one scene.

        Args:
            past_poses: ``[4, 3]`` (x, y, heading), oldest first, metres and radians, current ego frame.
            driving_command: index into :data:`~navsim_recogdrive.observation.DRIVING_COMMANDS`.
            future_poses: ``[8, 3]`` likewise, 0.5 s apart: the answer.

        Raises:
            ValueError: for poses of another shape or a command outside 0..3.
        """
        if driving_command not in range(len(DRIVING_COMMANDS)):
            raise ValueError(f"driving_command must be an index into {DRIVING_COMMANDS}, found {driving_command}")
        profile = self.profile
        labels = [""] if profile.camera_labels is None else [label for _, label in profile.camera_labels]
        question = "".join(
            [
                str(profile.before_image),
                *(label + IMAGE_MARK for label in labels),
                str(profile.question_head),
                profile.history_text(past_poses),
                str(profile.before_command),
                profile.commands[driving_command],
                str(profile.after_command),
            ]
        )
        return Conversation(self.system, question, profile.answer_text(None, future_poses))
