"""Reads keys of a checkpoint's ``config.json`` and refuses by name what would change the result; no torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError


class ConfigSection:
    """One object of a ``config.json``.

    Args:
        path: of the file, for error messages.
        content: the object.
        name: of the section, for error messages; empty for the whole file.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], name: str = "") -> None:
        self._path = path
        self._content = content
        self._prefix = f"{name}." if name else ""

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def get(self, name: str, default: Any = None) -> Any:
        """A key's value, or the default."""
        return self._content.get(name, default)

    def error(self, message: str) -> VLMCheckpointError:
        """An error about this file, to be raised."""
        return VLMCheckpointError(f"{self._path}: {message}")

    def wrong(self, name: str, expected: str, found: object) -> VLMCheckpointError:
        """An error about one key of this section, to be raised."""
        return self.error(f"{self._prefix}{name} must be {expected}, found {found!r}")

    def required(self, name: str) -> Any:
        """A key's value.

        Raises:
            VLMCheckpointError: if it is missing.
        """
        if name not in self._content:
            raise self.error(f"{self._prefix}{name} is missing; is this the whole config.json of a VLM?")
        return self._content[name]

    def section(self, name: str) -> ConfigSection:
        """A key whose value is an object.

        Raises:
            VLMCheckpointError: if it is missing or no object.
        """
        content = self.required(name)
        if not isinstance(content, dict):
            raise self.wrong(name, "an object", content)
        return ConfigSection(self._path, content, self._prefix + name)

    def empty(self, name: str) -> ConfigSection:
        """A key that is absent, as an object without keys."""
        return ConfigSection(self._path, {}, self._prefix + name)

    def names(self) -> set[str]:
        """The keys."""
        return set(self._content)

    def size(self, name: str) -> int:
        """A key whose value is a positive integer.

        Raises:
            VLMCheckpointError: if it is missing or anything else.
        """
        value = self.required(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, "a positive integer", value)
        return value

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Several :meth:`size` keys."""
        return {name: self.size(name) for name in names}

    def number(self, name: str, expected: str = "a finite number", fits: Callable[[float], bool] | None = None) -> Any:
        """A key whose value is a finite number, as the file writes it: ``int`` or ``float``.

        Args:
            name: the key.
            expected: which numbers are allowed, in words.
            fits: the same as a condition; absent for all.

        Raises:
            VLMCheckpointError: if it is missing or anything else.
        """
        value = self.required(name)
        if not _is_finite(value) or (fits is not None and not fits(value)):
            raise self.wrong(name, expected, value)
        return value

    def epsilon(self, name: str) -> float:
        """A :meth:`number` between 0 and 1, both excluded: what a norm adds to a variance."""
        value: float = self.number(name, "a number above 0 and below 1", lambda value: 0 < value < 1)
        return value

    def dropout(self, name: str) -> Any:
        """A :meth:`number` of at least 0 and below 1."""
        return self.number(name, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)

    def flag(self, name: str, absent: bool | None = None) -> bool:
        """A key whose value is true or false.

        Args:
            name: the key.
            absent: what an absent key means; ``None`` if it must be there.

        Raises:
            VLMCheckpointError: if it is missing or anything else.
        """
        if absent is not None and name not in self:
            return absent
        value = self.required(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """A key whose value is one of several strings.

        Raises:
            VLMCheckpointError: if it is missing or anything else.
        """
        value = self.required(name)
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}", value)
        return str(value)

    def whole_numbers(self, name: str, expected: str, fits: Callable[[list[int]], bool]) -> list[int]:
        """A key whose value is a list of whole numbers.

        Args:
            name: the key.
            expected: which lists are allowed, in words.
            fits: the same as a condition.

        Raises:
            VLMCheckpointError: if it is anything else; a missing key counts as ``None``.
        """
        value = self.get(name)
        if not isinstance(value, list) or not all(type(one) is int for one in value) or not fits(value):
            raise self.wrong(name, expected, value)
        return value

    def divides(self, name: str, divisor: int, into: str, dividend: int) -> None:
        """Insist that one size divides another.

        Raises:
            VLMCheckpointError: if it does not.
        """
        if dividend % divisor:
            raise self.wrong(name, f"a divisor of {into} {dividend}", divisor)

    def expect(self, name: str, *expected: object, why: str, absent: object = None) -> None:
        """Insist on a value.

        Args:
            name: the key.
            expected: the values that are supported.
            why: what is wrong with others.
            absent: what an absent key means.

        Raises:
            VLMCheckpointError: for another value.
        """
        found = self._content.get(name, absent)
        if found not in expected:
            supported = " or ".join(map(repr, expected))
            raise self.error(f"{self._prefix}{name} must be {supported}, found {found!r}: {why}")


TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
"""Sizes of a Qwen language model, named alike in every layout."""

ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
"""Activations that may be asked for, by their names in transformers."""

_ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("mrope_section", "mrope_interleaved"),
}


def read_text(text: ConfigSection) -> dict[str, Any]:
    """What all Qwen language models have in common: keyword arguments of their configuration in transformers.

    Raises:
        VLMCheckpointError: for a missing key, a value that is malformed or does not fit the others, or sliding windows.
    """
    text.expect("use_sliding_window", False, None, why="only full attention is supported", absent=False)
    layers = text.get("layer_types") or []
    if isinstance(layers, list) and "sliding_attention" in layers:
        raise text.error("layer_types holds sliding_attention: only full attention is supported")
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise text.wrong("layer_types", "a list of 'full_attention'", layers)
    language: dict[str, Any] = text.sizes(TEXT_SIZES)
    text.divides(
        "num_key_value_heads", language["num_key_value_heads"], "num_attention_heads", language["num_attention_heads"]
    )
    language["hidden_act"] = text.choice("hidden_act", ACTIVATIONS)
    language["rms_norm_eps"] = text.epsilon("rms_norm_eps")
    if "attention_dropout" in text:
        language["attention_dropout"] = text.dropout("attention_dropout")
    return language


def read_head_size(text: ConfigSection, language: Mapping[str, Any], whose: str) -> int:
    """Size of an attention head where it follows from the other sizes.

    Args:
        text: the language model's section.
        language: from :func:`read_text`.
        whose: the language model, for error messages.

    Raises:
        VLMCheckpointError: for heads that do not divide the width, of an odd size, or of another size in the file.
    """
    heads, width = language["num_attention_heads"], language["hidden_size"]
    if width % (2 * heads):
        raise text.wrong(
            "num_attention_heads", f"a divisor of hidden_size {width} that gives heads of even size", heads
        )
    size: int = width // heads
    text.expect("head_dim", size, None, why=f"{whose} is hidden_size / num_attention_heads")
    return size


def read_rope(text: ConfigSection, *kinds: str) -> tuple[float, ConfigSection]:
    """Rotary base and the other rotary settings, as transformers 5 writes them or as version 4 did.

    Args:
        text: the language model's section.
        kinds: the supported types of scaling.

    Raises:
        VLMCheckpointError: for a missing or malformed base, another scaling, or a setting that is not known here.
    """
    newer = text.get("rope_parameters") not in (None, {})
    name = "rope_parameters" if newer else "rope_scaling"
    rope = text.section(name) if text.get(name) is not None else text.empty(name)
    theta = (rope if newer else text).number("rope_theta", "a positive number", lambda value: value > 0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds:
        raise text.wrong(name, f"of type {' or '.join(map(repr, kinds))}", kind)
    if unknown := sorted(rope.names() - _ROPE_KEYS):
        raise text.wrong(name, f"without {unknown}, which are not supported", text.get(name))
    return theta, rope


def _is_finite(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False
