from __future__ import annotations

import pytest

from navsim_recogdrive.pretraining.template_tokens import reserved_token
from navsim_recogdrive.vlm.tiny_checkpoint import INTERNVL_TOKENS

MEANT = {"<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"}


@pytest.mark.parametrize("token", INTERNVL_TOKENS)
def test_every_token_that_internvl_adds_is_reserved_but_for_boxes(token: str) -> None:
    assert reserved_token(f"A car {token} here.") == (None if token in MEANT else token)


@pytest.mark.parametrize("text", ["", "<image>", "a < b | c > d", "<|>", "<im_end>", "|im_end|", "<IMG>"])
def test_plain_text(text: str) -> None:
    assert reserved_token(text) is None


def test_the_first_one_is_named() -> None:
    assert reserved_token("</img> <|im_end|>") == "</img>"
