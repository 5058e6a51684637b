"""The VLM's answer as text: greedy generation over several scenes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from navsim_recogdrive.observation import HORIZON_POSES
from navsim_recogdrive.vlm.answers import LARGEST_COORDINATE_M, LARGEST_HEADING_RAD
from navsim_recogdrive.vlm.backbone import PAD_TOKEN, Backbone, VLMInputs
from navsim_recogdrive.vlm.language import GrowingCache
from navsim_recogdrive.vlm.prompts import added_token_id

END_TOKENS = ("<|im_end|>", PAD_TOKEN)
"""Either ends an answer: the end of a turn in the chat template, and Qwen's end of text."""


@dataclass(frozen=True)
class GeneratedText:
    """A VLM's answer.

    Attributes:
        text: without its end token.
        finished: the model ended it; else it was cut off at the most new tokens that were allowed.
    """

    text: str
    finished: bool


def generate(backbone: Backbone, inputs: Sequence[VLMInputs], max_new_tokens: int) -> list[GeneratedText]:
    """Let the VLM answer the prompts of several scenes, always taking the likeliest token.

    Nothing but the arguments decides the answer: a checkpoint's ``generation_config.json`` (sampling, repetition
    penalties) is not read. Prompts continue from the prefix that hidden states continue from, too, see
    :mod:`~navsim_recogdrive.vlm.language`; those of different lengths are padded behind it and masked. So a scene's
    answer is the one that its whole prompt gets by itself, up to ties within the rounding of the dtype. Every answer
    ends after ``max_new_tokens``. Whole prompts are computed for a model in training, and for Qwen with transformers
    before 5.2, which gives tokens behind a prefix the wrong positions.

    Args:
        backbone: loaded with its head (``load_backbone(..., with_head=True)``).
        inputs: B scenes from ``backbone.prepare``; at least one.
        max_new_tokens: most tokens of an answer; an answer of eight poses takes up to 185 of them.

    Returns:
        B answers.

    Raises:
        ValueError: for a backbone without a head, an empty batch, inputs that the backbone did not prepare, or prompts
            that leave less than ``max_new_tokens`` of the model's positions.
        VLMOutOfMemory: if the GPU's memory is too small.
    """
    generator, architecture = backbone.family.generator, backbone.family.architecture
    if generator is None:
        raise ValueError("this VLM was loaded without its language modelling head: load_backbone(..., with_head=True)")
    if not inputs:
        raise ValueError("generate needs at least one scene")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    for scene in inputs:
        backbone.check(scene)
    longest = max(len(scene.token_ids) for scene in inputs)
    if longest + max_new_tokens > architecture.max_positions:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} are more than the model's "
            f"{architecture.max_positions} positions: lower max_new_tokens"
        )
    answers: list[GeneratedText | None] = [None] * len(inputs)
    for indices in _by_tile_size(inputs):
        for index, answer in zip(
            indices, _generate([inputs[i] for i in indices], backbone, max_new_tokens), strict=True
        ):
            answers[index] = answer
    return [answer for answer in answers if answer is not None]


def longest_answer(backbone: Backbone) -> int:
    """Tokens that eight poses take at their longest writing in the backbone's prompt profile, end token included.

    Raises:
        PromptError: if the tokenizer lacks a token that ends an answer.
    """
    _end_ids(backbone)
    # -249.99: a sign and every digit, each a token of its own
    poses = np.full((HORIZON_POSES, 3), 0.01 - LARGEST_COORDINATE_M)
    poses[:, 2] = 0.01 - LARGEST_HEADING_RAD
    text = backbone.profile.answer_text(backbone.tokenizer, poses)
    return len(backbone.tokenizer.encode(text, add_special_tokens=False)) + 1


def _generate(inputs: list[VLMInputs], backbone: Backbone, max_new_tokens: int) -> list[GeneratedText]:
    """Answers of scenes whose tiles have one size."""
    tokenizer, device, family = backbone.tokenizer, backbone.device, backbone.family
    end_ids = _end_ids(backbone)
    pad_id = added_token_id(tokenizer, PAD_TOKEN)
    longest = max(len(scene.token_ids) for scene in inputs)
    shared = len(backbone.preparation.prefix_ids)
    token_ids = torch.full((len(inputs), longest), pad_id)
    mask = torch.zeros_like(token_ids)
    for row, scene in enumerate(inputs):
        own = torch.from_numpy(scene.token_ids[shared:])
        token_ids[row, :shared] = torch.from_numpy(scene.token_ids[:shared])
        token_ids[row, longest - len(own) :] = own
        mask[row, :shared] = 1
        mask[row, longest - len(own) :] = 1
    tiles = torch.cat([torch.as_tensor(scene.tiles) for scene in inputs])
    how = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_ids,
        pad_token_id=pad_id,
        use_cache=True,
    )
    lower = "agent.generation.max_new_tokens or agent.vlm.max_tiles, plan fewer scenes at once"
    with torch.no_grad(), backbone.computing(len(inputs), lower):
        prefix = backbone.shared_prefix() if family.writes_behind_prefix else None
        arguments: dict[str, Any] = {**family.generate_arguments(token_ids, mask, tiles.to(device))}
        if prefix is not None:
            arguments["past_key_values"] = GrowingCache(prefix, len(inputs))
        written = family.generator.generate(
            input_ids=token_ids.to(device), attention_mask=mask.to(device), generation_config=how, **arguments
        )
    answers = []
    for new_ids in written[:, longest:].cpu().numpy():
        ends = np.flatnonzero(np.isin(new_ids, end_ids))
        kept = new_ids[: ends[0]] if len(ends) else new_ids
        text = tokenizer.decode(kept.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        answers.append(GeneratedText(text, finished=len(ends) > 0))
    return answers


def _end_ids(backbone: Backbone) -> list[int]:
    return [added_token_id(backbone.tokenizer, token) for token in END_TOKENS]


def _by_tile_size(inputs: Sequence[VLMInputs]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, scene in enumerate(inputs):
        groups.setdefault(tuple(scene.tiles.shape[1:]), []).append(index)
    return list(groups.values())
