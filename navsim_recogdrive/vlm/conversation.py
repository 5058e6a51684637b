"""A scene's prompt and answer as the turns of a chat: what a VLM is trained on.

Training data in InternVL's format holds text, the policy works with token ids. Both come from one prompt profile, and
encoding the turns with the chat template gives back the policy's token ids.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsim_recogdrive.observation import DRIVING_COMMANDS, HISTORY_POSES
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile, Tokenizer, segment_text

IMAGE_MARK = "<image>"
"""Stands for an image in the text of a turn."""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

_BEFORE_IMAGE = re.compile(r"<\|im_start\|>system\n(?P<system>.*)<\|im_end\|>\n<\|im_start\|>user\n(?P<user>.*)", re.S)
_COORDINATES = ("x", "y", "heading")
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
        question = "".join(
            [
                str(profile.before_image),
                self._images,
                str(profile.question_head),
                profile.history_text(past_poses),
                str(profile.before_command),
                profile.commands[driving_command],
                str(profile.after_command),
            ]
        )
        return Conversation(self.system, question, profile.answer_text(None, future_poses))

    def mismatch(self, system: str | None, question: str) -> str | None:
        """What keeps a system message and a question from being this profile's, ``None`` if they are.

        Whatever :meth:`write` can write passes, and nothing else: numbers and command are read from the question, and
        what is written from them must be the question again.

        Args:
            system: the system message, ``None`` where there is none.
            question: with :data:`IMAGE_MARK` for each image.
        """
        if system != self.system:
            found = "there is none" if system is None else f"found {_from_difference(system, self.system)!r}"
            return f"the system message must be {self.system!r:.60}, {found}"
        images, marks = self._images.count(IMAGE_MARK), question.count(IMAGE_MARK)
        if marks != images:
            return f"the question must have {images} {IMAGE_MARK}, found {marks}"
        head, tail = self._head, str(self.profile.after_command)
        if not question.startswith(head):
            return f"the question must begin {head!r}, found {_from_difference(question, head)!r}"
        if not question.endswith(tail):
            return f"the question must end {tail!r}, found {question[-len(tail) - 20 :]!r}"
        match = self._pattern.fullmatch(question)
        if match is None or self.profile.history_text(self._poses(match)) != match["history"]:
            said = question[len(head) : len(question) - len(tail)]
            return f"the history or the command is not as the profile writes them: {said!r}"
        return None

    def _poses(self, match: re.Match[str]) -> NDArray[np.float64]:
        zero = self.profile.number.zero
        said = match.groupdict()  # a history may leave a coordinate out
        values = [said.get(f"{name}{index}") for index in range(HISTORY_POSES) for name in _COORDINATES]
        numbers = []
        for text in values:
            try:
                numbers.append(0.0 if text in (None, zero) else float(text))
            except ValueError:
                numbers.append(np.nan)  # is written otherwise than it was read
        return np.reshape(numbers, (HISTORY_POSES, len(_COORDINATES)))

    @property
    def _images(self) -> str:
        labels = self.profile.camera_labels
        return "".join(label + IMAGE_MARK for label in ([""] if labels is None else [label for _, label in labels]))

    @property
    def _head(self) -> str:
        return f"{self.profile.before_image}{self._images}{self.profile.question_head}"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        profile = self.profile
        items = []
        for index, step in enumerate(profile.history_steps):
            # Control characters stand for what changes while the rest is escaped.
            marked = profile.history_item.format(k=step, x="\0", y="\1", heading="\2")
            pattern = re.escape(marked)
            for mark, name in zip("\0\1\2", _COORDINATES, strict=True):
                pattern = pattern.replace(re.escape(mark), f"(?P<{name}{index}>[^\\s]+?)", 1)
            items.append(pattern)
        history = re.escape(profile.history_join).join(items)
        commands = "|".join(map(re.escape, sorted(profile.commands, key=len, reverse=True)))
        head = re.escape(self._head)
        between, tail = re.escape(str(profile.before_command)), re.escape(str(profile.after_command))
        return re.compile(f"{head}(?P<history>{history}){between}(?:{commands}){tail}")


def _from_difference(found: str, expected: str) -> str:
    """The part of a text from a little before where it differs from another."""
    same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
    start = max(0, same - 20)
    return ("..." if start else "") + found[start : start + 60]
