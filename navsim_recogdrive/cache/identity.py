"""What made a cache of hidden states: ``ROOT/_recogdrive/identity.json``.

NAVSIM's ``Dataset`` takes every entry of the cache's root for a log's folder and every entry of that for a scene's. A
folder with a file in it does no harm there, a file in the root does.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from navsim_recogdrive.cache.codec import MODES
from navsim_recogdrive.cache.hidden_state import ORIGIN_BYTES

FOLDER = "_recogdrive"
"""Folder in a cache's root that is no log's."""

_FILE = "identity.json"
_FORMAT = 1

_READ_AGAIN_S, _READ_TIMES = 0.2, 25


class CacheIdentityError(ValueError):
    """A cache that was made by something else than what is going to use it, or whose identity cannot be read."""


@dataclass(frozen=True)
class CacheIdentity:
    """What made the hidden states of a cache.

    Attributes:
        vlm: name of the VLM's folder or repository, for people; not compared.
        model: fingerprint of the VLM's architecture and weights.
        trained: fingerprint of what joint training made of it, empty for the VLM as it is.
        prompt: fingerprint of the prompt profile.
        cameras: what the VLM sees, from left to right.
        hidden_size: columns of a hidden state.
        hidden_length: rows of a hidden state, padding included.
        max_tiles: most tiles of an image.
        dtype: that the VLM computed in.
        mode: how hidden states are stored, one of :data:`~navsim_recogdrive.cache.codec.MODES`.
        package: version of navsim-recogdrive; not compared.
    """

    vlm: str
    model: str
    trained: str
    prompt: str
    cameras: tuple[str, ...]
    hidden_size: int
    hidden_length: int
    max_tiles: int
    dtype: str
    mode: str
    package: str

    DECIDING = ("model", "trained", "prompt", "cameras", "hidden_size", "hidden_length", "max_tiles")
    """Fields that decide the hidden states but for rounding."""

    ALL = (*DECIDING, "dtype", "mode")
    """Fields in which all entries of one cache are equal."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if self.mode not in MODES:
            raise CacheIdentityError(f"unknown cache mode {self.mode!r}, expected one of {', '.join(MODES)}")

    @property
    def origin(self) -> bytes:
        """8 bytes that are stored with every hidden state: a digest of :attr:`DECIDING` and the dtype."""
        content = [getattr(self, name) for name in (*self.DECIDING, "dtype")]
        return hashlib.sha256(json.dumps(content).encode()).digest()[:ORIGIN_BYTES]

    def differences(self, other: CacheIdentity, names: Sequence[str] = ALL) -> list[str]:
        """Those of the fields ``names`` in which ``other`` differs."""
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON and checkpoints."""
        return {**asdict(self), "cameras": list(self.cameras)}

    @classmethod
    def from_dict(cls, content: object) -> CacheIdentity:
        """The inverse of :meth:`to_dict`; fields of later versions are left out.

        Raises:
            CacheIdentityError: if a field is missing.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(content, dict) or any(name not in content for name in names):
            missing = [name for name in names if name not in content] if isinstance(content, dict) else names
            raise CacheIdentityError(f"an identity without {', '.join(missing)}")
        return cls(**{name: content[name] for name in names})

    def describe(self) -> str:
        """One line for people; fingerprints shortened."""
        shown = {name: _shown(value) for name, value in self.to_dict().items() if value}
        return ", ".join(f"{name} {value}" for name, value in shown.items())


@lru_cache(maxsize=1)
def package_version() -> str:
    """Version of the installed navsim-recogdrive; looked up once, it is asked for with every scene."""
    try:
        return version("navsim-recogdrive")
    except PackageNotFoundError:
        return "unknown"


def read_identity(root: Path) -> CacheIdentity | None:
    """What made the cache ``root``; ``None`` if it does not say.

    Raises:
        CacheIdentityError: if it says so in a way that cannot be read.
    """
    path = root / FOLDER / _FILE
    for attempt in range(_READ_TIMES):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        # Empty where another process is writing it on a file system without hard links.
        if text or attempt == _READ_TIMES - 1:
            break
        time.sleep(_READ_AGAIN_S)
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise CacheIdentityError(f"its format is {content['format']}, this package reads {_FORMAT}")
        return CacheIdentity.from_dict(content["hidden_state"])
    except (ValueError, KeyError, TypeError) as error:
        raise CacheIdentityError(
            f"{path} cannot be read ({type(error).__name__}: {error}): restore it from a copy of the cache, or delete "
            "it if you know that all entries are of one VLM"
        ) from error


def claim(root: Path, identity: CacheIdentity) -> None:
    """Make ``root`` a cache of ``identity``, or make sure that it is one; of several processes the first one decides.

    Raises:
        CacheIdentityError: if it is a cache of something else, with both identities.
        OSError: if it cannot be written.
    """
    if read_identity(root) is None:
        folder = root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "hidden_state": identity.to_dict()}
        _create(folder / _FILE, json.dumps(content, indent=2) + "\n")
    found = read_identity(root)
    if found is not None:
        check_same(root, found, identity, CacheIdentity.ALL, "Use another cache_path, or the settings of this cache")


def check_same(root: Path, found: CacheIdentity, wanted: CacheIdentity, names: Sequence[str], advice: str) -> None:
    """Refuse a cache of another identity.

    Args:
        root: of the cache.
        found: what made it.
        wanted: what is going to use it.
        names: the fields to compare.
        advice: what to do.

    Raises:
        CacheIdentityError: if one of ``names`` differs, with both identities.
    """
    differing = found.differences(wanted, names)
    if differing:
        raise CacheIdentityError(
            f"the cache {root} holds hidden states of something else: {', '.join(differing)} "
            f"differ{'s' if len(differing) == 1 else ''}.\n  in the cache: {found.describe()}\n"
            f"  this run:     {wanted.describe()}\n{advice}"
        )


def _create(path: Path, text: str) -> None:
    """Write a file that appears whole, unless there is one already."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # nodes may share it and their process ids
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links: the name is still taken by one process only.
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            pass
    finally:
        partial.unlink(missing_ok=True)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
