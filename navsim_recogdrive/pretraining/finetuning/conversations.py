r"""One record of InternVL's annotation format, and its tokens: what the model reads and which of them it is taught.

The chat template is ``internvl2_5``, the one of InternVL3 and of this package's prompt profiles::

    <|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>

Only answers and the ``<|im_end|>`` behind each carry a loss. Each answer is encoded by itself, as it is generated: its
first token never merges with the line break before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.pretraining.template_tokens import reserved_token
from navsim_recogdrive.vlm.architecture import ImageTokens
from navsim_recogdrive.vlm.conversation import IMAGE_MARK, TURN_END, TURN_START, ConversationWriter
from navsim_recogdrive.vlm.prompts import Tokenizer, added_token_id

IGNORED = -100
"""Label of a token without a loss."""

SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The template's own system message, for records without one."""

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class InvalidRecord(ValueError):
    """A line of an annotation file that is no usable record; says why."""


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """A conversation about any number of images.

    Attributes:
        name: the record's ``id``, empty without one.
        images: paths relative to the data set's root, in the order of their ``<image>``.
        sizes: (width, height) of each image in pixels, ``None`` where the record does not say.
        turns: an optional system turn, then user and assistant by turns; the last is an assistant's.
    """

    name: str
    images: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] | None
    turns: tuple[Turn, ...]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].text

    @property
    def system(self) -> str | None:
        """The system message, ``None`` without a system turn."""
        return self.turns[0].text if self.turns[0].role == "system" else None

    def mismatch(self, writer: ConversationWriter) -> str | None:
        """What keeps this from being one question in the words of a prompt profile, ``None`` if it is one."""
        questions = [turn.text for turn in self.turns if turn.role == "user"]
        if len(questions) != 1:
            return f"it must be one question, found {len(questions)}"
        return writer.mismatch(self.system, questions[0])


def read_record(line: str | bytes | Mapping[str, Any]) -> Record:
    """Read one line of an annotation file (``id``, ``image``, ``width``, ``height``, ``conversations``).

    ``image`` is a path or a list of them, absent for text alone; ``width`` and ``height``, or ``width_list`` and
    ``height_list``, follow it. A record of one image whose text has no ``<image>`` begins with it, as InternVL's own
    loader has it.

    Raises:
        InvalidRecord: for anything that is not such a record.
    """
    try:
        content = line if isinstance(line, Mapping) else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"not valid JSON ({error})") from None
    if not isinstance(content, Mapping):
        raise InvalidRecord(f"must be a JSON object, found a {type(content).__name__}")
    images = _strings(content.get("image"), "image")
    turns = _turns(content.get("conversations"))
    placeholders = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if len(images) == 1 and not placeholders:
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", f"{IMAGE_MARK}\n{turns[first].text}")
    elif placeholders != len(images):
        raise InvalidRecord(f"{len(images)} image(s), but {placeholders} {IMAGE_MARK} in the conversations")
    name = content.get("id", "")
    return Record(str(name), images, _sizes(content, len(images)), tuple(turns))


def _strings(value: object, key: str) -> tuple[str, ...]:
    """A string, a list of strings or nothing."""
    values = [] if value in (None, "") else value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one for one in values):
        raise InvalidRecord(f"{key} must be a path or a list of paths, found {value!r:.80}")
    return tuple(values)


def _sizes(content: Mapping[str, Any], images: int) -> tuple[tuple[int, int], ...] | None:
    width, height = (content.get(key, content.get(f"{key}_list")) for key in ("width", "height"))
    if (width is None and height is None) or not images:
        return None
    widths, heights = (value if isinstance(value, list) else [value] for value in (width, height))
    if not len(widths) == len(heights) == images or any(type(one) is not int or one < 1 for one in widths + heights):
        raise InvalidRecord(
            f"width and height must be a positive whole number for each of {images} image(s), found "
            f"{width!r:.40} and {height!r:.40}"
        )
    return tuple(zip(widths, heights, strict=True))


def _turns(conversations: object) -> list[Turn]:
    if not isinstance(conversations, list) or not conversations:
        raise InvalidRecord("conversations must be a list of turns")
    turns = []
    for index, turn in enumerate(conversations):
        speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        role = _ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None or not isinstance(text, str):
            raise InvalidRecord(
                f"conversations[{index}] must have a 'from' (system, human or gpt) and a text 'value', found "
                f"{turn!r:.80}"
            )
        turns.append(Turn(role, text))
    spoken = turns[1:] if turns[0].role == "system" else turns
    expected: list[Role] = ["user", "assistant"] * (len(spoken) // 2)
    if not spoken or [turn.role for turn in spoken] != expected:
        raise InvalidRecord(
            "conversations must be human and gpt by turns and end with gpt, found "
            f"{', '.join(turn.role for turn in turns)}"
        )
    for turn in turns:
        if turn.role != "user" and IMAGE_MARK in turn.text:
            raise InvalidRecord(f"{IMAGE_MARK} stands in the {turn.role}'s text; only questions have images")
        if turn.role == "assistant" and not turn.text.strip():
            raise InvalidRecord("an answer is empty")
    return turns


def check_texts(record: Record) -> None:
    """Make sure that no text spells out a special token, as :class:`ChatEncoder` does.

    Raises:
        InvalidRecord: for one that does.
    """
    for turn in record.turns:
        if (token := reserved_token(turn.text)) is not None:
            raise InvalidRecord(f"the {turn.role}'s text spells out {token}, a token of the chat template")


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as the model reads it.

    Attributes:
        token_ids: ``[S]`` int64.
        labels: ``[S]`` int64, a token's own id where it is taught, else :data:`IGNORED`. Not shifted: a token's label
            is compared with what the model predicts one row before.
    """

    token_ids: NDArray[np.int64]
    labels: NDArray[np.int64]


class ChatEncoder:
    """Writes conversations as token ids.

    Args:
        tokenizer: the checkpoint's.
        image_tokens: how an image appears in the text.
        system_message: for records without a system turn; empty for no system block.
    """

    def __init__(self, tokenizer: Tokenizer, image_tokens: ImageTokens, system_message: str = SYSTEM_MESSAGE) -> None:
        self._tokenizer = tokenizer
        self.system_message = system_message
        self._start, self._context, self._end = (
            added_token_id(tokenizer, token) for token in (image_tokens.start, image_tokens.context, image_tokens.end)
        )
        self._turn_end = added_token_id(tokenizer, TURN_END)

    def encode(self, record: Record, image_rows: Sequence[int]) -> EncodedConversation:
        """The whole conversation.

        Args:
            record: the conversation.
            image_rows: rows that each image becomes in the language model, 256 per tile as published.

        Raises:
            InvalidRecord: for a text that spells out a token of the template.
        """
        rows = iter(image_rows)
        ids: list[int] = []
        labels: list[int] = []
        for text, is_answer in self._segments(record):
            new = self._answer_ids(text) if is_answer else self._text_ids(text, rows)
            ids += new
            labels += new if is_answer else [IGNORED] * len(new)
        return EncodedConversation(np.asarray(ids, dtype=np.int64), np.asarray(labels, dtype=np.int64))

    def encode_prompt(self, record: Record, image_rows: Sequence[int]) -> NDArray[np.int64]:
        """``[S]`` int64: all that comes before the last answer, which is to be generated; raises as :meth:`encode`."""
        rows = iter(image_rows)
        ids: list[int] = []
        for text, is_answer in list(self._segments(record))[:-1]:
            ids += self._answer_ids(text) if is_answer else self._text_ids(text, rows)
        return np.asarray(ids, dtype=np.int64)

    def _segments(self, record: Record) -> Iterator[tuple[str, bool]]:
        """(text, whether it is an answer) by turns; answers without their end token."""
        check_texts(record)
        turns = record.turns
        if turns[0].role != "system" and self.system_message:
            turns = (Turn("system", self.system_message), *turns)
        text = ""
        for turn in turns:
            if turn.role == "assistant":
                yield f"{text}{TURN_START}assistant\n", False
                yield turn.text, True
                text = "\n"
            else:
                text += f"{TURN_START}{turn.role}\n{turn.text}{TURN_END}\n"

    def _answer_ids(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, add_special_tokens=False), self._turn_end]

    def _text_ids(self, text: str, rows: Iterator[int]) -> list[int]:
        """Token ids of a text, its images in place; takes each one's rows from ``rows``."""
        first, *rest = text.split(IMAGE_MARK)
        ids = list(self._tokenizer.encode(first, add_special_tokens=False)) if first else []
        for part in rest:
            ids += [self._start, *[self._context] * next(rows), self._end]
            ids += self._tokenizer.encode(part, add_special_tokens=False) if part else []
        return ids
