"""The prompt of a driving scene as token ids, from a prompt profile.

A profile is a JSON file: five text segments, and rules for the two things that change from scene to scene, the
history of past poses and the driving command. The whole prompt is, in order::

    before_image <img> <IMG_CONTEXT>*n </img> question_head HISTORY before_command COMMAND after_command

With several cameras each has its label and its image in turn, in place of the one image. The answer that a VLM is
trained to write is ``answer_head POSES answer_tail``.

A segment is a string, or a list of token ids where the exact tokens matter: the built-in profile ``published`` gives
the ids that the published ReCogDrive weights were trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from navsim_recogdrive.observation import DRIVING_COMMANDS, HISTORY_POSES, HORIZON_POSES
from navsim_recogdrive.vlm.architecture import ImageTokens

Segment = str | tuple[int, ...]

PROFILE_FILE = "prompt_profile.json"
"""In a checkpoint's folder: the profile that its weights were fine-tuned with."""


class PromptError(ValueError):
    """A prompt profile that cannot be used: malformed, unknown, or not made for the tokenizer at hand."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that prompts need (so that profiles are read without transformers)."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; special tokens spelt out in it become their ids."""
        ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> Any:
        """The text of token ids, special tokens spelt out."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """Id of one token; ``None`` or another token's id where it is unknown."""
        ...


@dataclass(frozen=True)
class NumberFormat:
    """How a coordinate is written: ``zero`` where ``abs(round(value, decimals)) <= zero_limit``, else ``format``.

    Attributes:
        format: a printf format for one float, such as ``%+.2f``.
        decimals: decimals that the value is rounded to before it is compared with the limit.
        zero: text for values that count as zero.
        zero_limit: largest rounded magnitude that counts as zero.
    """

    format: str
    decimals: int
    zero: str
    zero_limit: float

    def __call__(self, value: float) -> str:
        """Write one number."""
        return self.zero if abs(round(value, self.decimals)) <= self.zero_limit else self.format % value


@dataclass(frozen=True)
class PromptProfile:
    """One way of asking for a trajectory; part of the identity of a VLM's hidden states.

    Attributes:
        before_image: the system block and the start of the user's turn.
        question_head: from the end of the image to the history.
        before_command: between the history and the driving command.
        after_command: the rest of the user's turn and the start of the answer.
        history_item: template of one past pose with the fields ``{k}``, ``{x}``, ``{y}``, ``{heading}``.
        history_steps: the value of ``{k}`` for each of the 4 past poses, oldest first.
        history_join: text between two past poses.
        number: how coordinates are written.
        commands: text for each of the four driving commands (left, straight, right, unknown).
        text_sha256: SHA-256 of the segments' text, joined; guards segments given as ids against another vocabulary.
        camera_labels: (camera, text before its image) for each camera, in the order of the images; ``None`` for one
            image without a label.
        answer_head: start of the answer, up to the first pose.
        answer_tail: end of the answer, behind the last pose.
    """

    before_image: Segment
    question_head: Segment
    before_command: Segment
    after_command: Segment
    history_item: str
    history_steps: tuple[int, ...]
    history_join: str
    number: NumberFormat
    commands: tuple[str, ...]
    text_sha256: str | None = None
    camera_labels: tuple[tuple[str, str], ...] | None = None
    answer_head: Segment = "["
    answer_tail: Segment = "]"

    def __post_init__(self) -> None:
        if len(self.history_steps) != HISTORY_POSES:
            raise PromptError(f"history_steps must have {HISTORY_POSES} entries, found {list(self.history_steps)}")
        if len(self.commands) != len(DRIVING_COMMANDS):
            raise PromptError(f"commands must have one text for each of {DRIVING_COMMANDS}, found {self.commands}")
        if self.text_sha256 is None and any(isinstance(segment, tuple) for segment in self._segments):
            raise PromptError("a profile with segments of token ids needs text_sha256, the SHA-256 of their text")
        try:
            self.history_text(np.zeros((HISTORY_POSES, 3)))
            self.number.format % 1.0
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise PromptError(
                f"history_item {self.history_item!r} or number {self.number} is malformed: {error}"
            ) from None

    @staticmethod
    def load(name_or_path: str | Path) -> PromptProfile:
        """Load a built-in profile by name (``published``), or a profile of your own from a JSON file.

        Raises:
            PromptError: if there is no such profile, or the file does not hold exactly a profile's fields.
        """
        names = builtin_profiles()
        if str(name_or_path) in names:
            folder = resources.files("navsim_recogdrive.vlm") / "profiles"
            text = (folder / f"{name_or_path}.json").read_text(encoding="utf-8")
        elif Path(name_or_path).is_file():
            text = Path(name_or_path).read_text(encoding="utf-8")
        else:
            raise PromptError(
                f"no prompt profile {str(name_or_path)!r}: give one of the built-in names {names} or the path of a "
                "JSON file"
            )
        try:
            return _profile_from(json.loads(text))
        except (json.JSONDecodeError, PromptError) as error:
            raise PromptError(f"prompt profile {str(name_or_path)!r}: {error}") from None

    def to_json(self) -> str:
        """The content of a profile's file: what :meth:`load` makes an equal profile of."""
        content: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        content["number"] = vars(self.number)
        if self.camera_labels is None:
            del content["camera_labels"]
        else:
            content["camera_labels"] = dict(self.camera_labels)
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the token ids; equal for equal profiles wherever they lie."""
        content: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        content["number"] = vars(self.number)
        del content["answer_head"], content["answer_tail"]  # no part of the prompt
        if self.camera_labels is None:
            del content["camera_labels"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_tokenizer(self, tokenizer: Tokenizer, image_tokens: ImageTokens) -> None:
        """Make sure that a tokenizer has the vocabulary that this profile was written for.

        Raises:
            PromptError: if an image token is missing, or the profile's ids stand for other text in this vocabulary.
        """
        for token in (image_tokens.start, image_tokens.context, image_tokens.end):
            added_token_id(tokenizer, token)
        if self.text_sha256 is not None:
            text = "".join(segment_text(segment, tokenizer) for segment in self._segments)
            if hashlib.sha256(text.encode()).hexdigest() != self.text_sha256:
                raise PromptError(
                    "the prompt profile's token ids stand for other text in this tokenizer's vocabulary (it needs "
                    "Qwen2.5's): use the checkpoint's own tokenizer files, or a profile of text segments"
                )

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Make sure that this profile asks about just these cameras.

        Raises:
            PromptError: if it asks about others, or about a single image without saying whose.
        """
        labelled = None if self.camera_labels is None else tuple(camera for camera, _ in self.camera_labels)
        if labelled is None and len(cameras) > 1:
            raise PromptError(
                f"this prompt profile is about a single image, the policy sees {list(cameras)}: use one with "
                "camera_labels, such as the built-in three_cameras"
            )
        if labelled is not None and labelled != tuple(cameras):
            raise PromptError(f"this prompt profile is about {list(labelled)}, the policy sees {list(cameras)}")

    def prefix_ids(self, tokenizer: Tokenizer, image_tokens: ImageTokens) -> list[int]:
        """Token ids up to and including the first image's start: the same for every scene (291 as published)."""
        label = "" if self.camera_labels is None else self.camera_labels[0][1]
        return [
            *_ids(self.before_image, tokenizer),
            *tokenizer.encode(label, add_special_tokens=False),
            added_token_id(tokenizer, image_tokens.start),
        ]

    def token_ids(
        self,
        tokenizer: Tokenizer,
        past_poses: ArrayLike,
        driving_command: int,
        image_rows: Sequence[int],
        image_tokens: ImageTokens,
    ) -> list[int]:
        """Write the whole prompt of one scene.

        Args:
            tokenizer: the checkpoint's tokenizer.
            past_poses: ``[4, 3]`` (x, y, heading), oldest first, metres and radians, current ego frame.
            driving_command: index into :data:`~navsim_recogdrive.observation.DRIVING_COMMANDS`; 3, unknown, is
                written as its own word.
            image_rows: rows of each camera's image; 9 tiles of 256 for a NAVSIM image as published.
            image_tokens: the tokens round and in place of an image.

        Returns:
            The token ids; 2791 of them for a typical scene of 9 tiles in the published profile.

        Raises:
            ValueError: for poses of another shape or a command outside 0..3.
            PromptError: if the tokenizer lacks the image tokens, or the profile is about another number of images.
        """
        if driving_command not in range(len(DRIVING_COMMANDS)):
            raise ValueError(f"driving_command must be an index into {DRIVING_COMMANDS}, found {driving_command}")
        # Tokens join text across the borders of the segments (")" and a line break are one token), so everything
        # behind the image is encoded as one text.
        question = (
            segment_text(self.question_head, tokenizer)
            + self.history_text(past_poses)
            + segment_text(self.before_command, tokenizer)
            + self.commands[driving_command]
            + segment_text(self.after_command, tokenizer)
        )
        labels = [""] if self.camera_labels is None else [label for _, label in self.camera_labels]
        if len(labels) != len(image_rows):
            raise PromptError(f"this prompt profile is about {len(labels)} image(s), found {len(image_rows)}")
        start, context, end = (
            added_token_id(tokenizer, token) for token in (image_tokens.start, image_tokens.context, image_tokens.end)
        )
        images = [*self.prefix_ids(tokenizer, image_tokens), *[context] * image_rows[0], end]
        for label, rows in zip(labels[1:], image_rows[1:], strict=True):
            images += [*tokenizer.encode(label, add_special_tokens=False), start, *[context] * rows, end]
        return [*images, *tokenizer.encode(question, add_special_tokens=False)]

    def history_text(self, past_poses: ArrayLike) -> str:
        """Write the past poses: ``[4, 3]`` (x, y, heading), oldest first, metres and radians, current ego frame.

        Raises:
            ValueError: for another shape.
        """
        poses = np.asarray(past_poses, dtype=np.float64)
        if poses.shape != (HISTORY_POSES, 3):
            raise ValueError(f"past_poses must have shape [{HISTORY_POSES}, 3], found {list(poses.shape)}")
        items = []
        for step, pose in zip(self.history_steps, poses.tolist(), strict=True):
            x, y, heading = map(self.number, pose)
            items.append(self.history_item.format(k=step, x=x, y=y, heading=heading))
        return self.history_join.join(items)

    def answer_text(self, tokenizer: Tokenizer | None, poses: ArrayLike) -> str:
        """Write a trajectory ``[8, 3]`` (x, y, heading), metres and radians, ego frame, as the VLM is to answer it.

        Raises:
            ValueError: for another shape.
            PromptError: without a tokenizer, where the answer's segments are token ids.
        """
        trajectory = np.asarray(poses, dtype=np.float64)
        if trajectory.shape != (HORIZON_POSES, 3):
            raise ValueError(f"poses must have shape [{HORIZON_POSES}, 3], found {list(trajectory.shape)}")
        written = ", ".join(f"({', '.join(map(self.number, pose))})" for pose in trajectory.tolist())
        return segment_text(self.answer_head, tokenizer) + written + segment_text(self.answer_tail, tokenizer)

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return (self.before_image, self.question_head, self.before_command, self.after_command)


def builtin_profiles() -> list[str]:
    """Names of the profiles that come with this package, sorted."""
    folder = resources.files("navsim_recogdrive.vlm") / "profiles"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_profile(name_or_path: str | Path, cameras: Sequence[str], checkpoint: Path | None = None) -> PromptProfile:
    """Load a profile for ``cameras``.

    Args:
        name_or_path: as for :meth:`PromptProfile.load`, or ``auto``: the checkpoint's own where it has one
            (``prompt_profile.json``), else ``published`` for one camera and ``three_cameras`` for three.
        cameras: what the VLM sees.
        checkpoint: folder of the VLM, ``None`` where there is none.

    Raises:
        PromptError: if it is unknown, malformed, or about other cameras.
    """
    if name_or_path == "auto":
        own = None if checkpoint is None else checkpoint / PROFILE_FILE
        name_or_path = own if own and own.is_file() else "published" if len(cameras) == 1 else "three_cameras"
    profile = PromptProfile.load(name_or_path)
    profile.check_cameras(cameras)
    return profile


def _profile_from(content: Any) -> PromptProfile:
    """Build a profile from the content of its file; ``about`` is a comment."""
    if not isinstance(content, dict):
        raise PromptError("the file must hold one JSON object")
    content = {key: value for key, value in content.items() if key != "about"}
    known = {field.name for field in fields(PromptProfile)}
    required = known - {"text_sha256", "camera_labels", "answer_head", "answer_tail"}
    if unknown := sorted(content.keys() - known):
        raise PromptError(f"unknown fields {unknown}; a profile has {sorted(known)}")
    if missing := sorted(required - content.keys()):
        raise PromptError(f"missing fields {missing}")
    for name in ("before_image", "question_head", "before_command", "after_command", "answer_head", "answer_tail"):
        if name not in content:
            continue
        segment = content[name]
        if isinstance(segment, list) and all(isinstance(token, int) for token in segment):
            content[name] = tuple(segment)
        elif not isinstance(segment, str):
            raise PromptError(f"{name} must be a string or a list of token ids")
    try:
        content["number"] = NumberFormat(**content["number"])
        content["history_steps"] = tuple(content["history_steps"])
        content["commands"] = tuple(content["commands"])
        if content.get("camera_labels") is not None:
            labels: Mapping[str, str] = dict(content["camera_labels"])
            content["camera_labels"] = tuple(labels.items())
    except (TypeError, ValueError) as error:
        raise PromptError(f"number, history_steps, commands or camera_labels is malformed: {error}") from None
    return PromptProfile(**content)


def segment_text(segment: Segment, tokenizer: Tokenizer | None) -> str:
    """The text of a segment.

    Raises:
        PromptError: for token ids without a tokenizer.
    """
    if isinstance(segment, str):
        return segment
    if tokenizer is None:
        raise PromptError("this prompt profile is given as token ids: a tokenizer is needed to spell it out")
    return str(tokenizer.decode(list(segment), clean_up_tokenization_spaces=False))


def _ids(segment: Segment, tokenizer: Tokenizer) -> Sequence[int]:
    return tokenizer.encode(segment, add_special_tokens=False) if isinstance(segment, str) else segment


def added_token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of one added token.

    Raises:
        PromptError: if the tokenizer does not know it as one token.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    # Without the token a tokenizer answers None or the id of its unknown token.
    if not isinstance(found, int) or tokenizer.encode(token, add_special_tokens=False) != [found]:
        raise PromptError(
            f"the tokenizer has no token {token}: the checkpoint's tokenizer files (tokenizer_config.json or "
            "added_tokens.json) must define the model's added tokens"
        )
    return found
