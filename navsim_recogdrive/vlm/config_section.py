"""Reads keys of a checkpoint's ``config.json`` and refuses by name what would change the result; no torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    def taken(self, required: Mapping[str, str], optional: Mapping[str, str]) -> dict[str, Any]:
        """Take keys over under other names: ``{name here: name there}``; optional ones where they are present.

        Raises:
            VLMCheckpointError: if a required key is missing.
        """
        taken = {there: self.required(here) for here, there in required.items()}
        return taken | {there: self._content[here] for here, there in optional.items() if here in self._content}


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

_ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("mrope_section", "mrope_interleaved"),
}


def read_text(text: ConfigSection) -> dict[str, Any]:
    """What all Qwen language models have in common: keyword arguments of their configuration in transformers.

    Raises:
        VLMCheckpointError: for a missing key, or sliding windows.
    """
    text.expect("use_sliding_window", False, None, why="only full attention is supported", absent=False)
    if "sliding_attention" in (text.get("layer_types") or ()):
        raise text.error("layer_types holds sliding_attention: only full attention is supported")
    names = ("hidden_act", "rms_norm_eps")
    taken = text.taken(dict(zip(names, names, strict=True)), {"attention_dropout": "attention_dropout"})
    return text.sizes(TEXT_SIZES) | taken


def read_rope(text: ConfigSection, *kinds: str) -> tuple[float, Mapping[str, Any]]:
    """Rotary base and the other rotary settings, as transformers 5 writes them or as version 4 did.

    Args:
        text: the language model's section.
        kinds: the supported types of scaling.

    Raises:
        VLMCheckpointError: for a missing base, another scaling, or a setting that is not known here.
    """
    if text.get("rope_parameters"):
        name = "rope_parameters"
        theta = text.section(name).required("rope_theta")
    else:
        name = "rope_scaling"
        theta = text.required("rope_theta")
    settings: Mapping[str, Any] = text.get(name) or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in kinds:
        raise text.wrong(name, f"of type {' or '.join(map(repr, kinds))}", kind)
    if unknown := sorted(settings.keys() - _ROPE_KEYS):
        raise text.wrong(name, f"without {unknown}, which are not supported", dict(settings))
    return theta, settings
