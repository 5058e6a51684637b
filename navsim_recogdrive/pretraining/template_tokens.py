"""Text that a tokenizer would take for its own special tokens; training data must not hold any."""

from __future__ import annotations

import re

_RESERVED = re.compile(r"<\|[a-z0-9_]+\|>|</?img>|<IMG_CONTEXT>|</?tool_(?:call|response)>")
# InternVL's <ref>, <box> and <quad> are tokens too, but an answer means them.


def reserved_token(text: str) -> str | None:
    """The first special token of InternVL's and Qwen's chat templates that a text spells out; ``None`` for plain text.

    Spelt out in a question or an answer it would be encoded as the token itself: end the turn, begin another one, or
    stand for an image. ``<image>``, the mark for an image in a question, is none of them.
    """
    found = _RESERVED.search(text)
    return None if found is None else found[0]
