from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from small_cache import IDENTITY

from navsim_recogdrive.cache import identity as module
from navsim_recogdrive.cache.identity import CacheIdentity, CacheIdentityError, claim, read_identity

CHANGES = {
    "model": "c" * 64,
    "trained": "d" * 64,
    "prompt": "e" * 64,
    "cameras": ("front_left", "front", "front_right"),
    "hidden_size": 3584,
    "hidden_length": 2800,
    "max_tiles": 6,
    "dtype": "float32",
    "mode": "int8",
}


def test_claim_and_read(tmp_path: Path) -> None:
    assert read_identity(tmp_path / "absent") is None
    claim(tmp_path / "cache", IDENTITY)
    assert read_identity(tmp_path / "cache") == IDENTITY
    claim(tmp_path / "cache", replace(IDENTITY, package="9.9", vlm="the same elsewhere"))
    assert read_identity(tmp_path / "cache") == IDENTITY
    assert [path.name for path in (tmp_path / "cache" / "_recogdrive").iterdir()] == ["identity.json"]
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert read_identity(tmp_path / "moved") == IDENTITY


@pytest.mark.parametrize("name", CHANGES)
def test_another_identity_is_refused_with_both(tmp_path: Path, name: str) -> None:
    assert set(CHANGES) == set(CacheIdentity.ALL)
    claim(tmp_path, IDENTITY)
    other = replace(IDENTITY, **{name: CHANGES[name]})
    with pytest.raises(CacheIdentityError, match=f": {name} differs") as caught:
        claim(tmp_path, other)
    assert IDENTITY.describe() in str(caught.value)
    assert other.describe() in str(caught.value)
    assert read_identity(tmp_path) == IDENTITY
    assert (other.origin != IDENTITY.origin) == (name != "mode")


@pytest.mark.parametrize("links", [True, False])
def test_of_several_processes_one_decides(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def no_links(source: object, target: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(module.os, "link", no_links)
    for attempt in range(10):
        root = tmp_path / str(attempt)
        identities = [replace(IDENTITY, hidden_size=size) for size in range(1, 9)]
        refused: list[int] = []
        barrier = threading.Barrier(len(identities))

        def compete(one: CacheIdentity, root: Path, refused: list[int], barrier: threading.Barrier) -> None:
            barrier.wait()
            try:
                claim(root, one)
            except CacheIdentityError:
                refused.append(one.hidden_size)

        threads = [threading.Thread(target=compete, args=[one, root, refused, barrier]) for one in identities]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = read_identity(root)
        assert found is not None
        assert sorted([*refused, found.hidden_size]) == list(range(1, 9))


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_AGAIN_S", 0.0)
    claim(tmp_path, IDENTITY)
    path = tmp_path / "_recogdrive" / "identity.json"
    content = json.loads(path.read_text())
    for text in ("", "{", json.dumps({"format": 2}), json.dumps({**content, "hidden_state": {"model": "a"}})):
        path.write_text(text)
        with pytest.raises(CacheIdentityError, match="identity.json cannot be read"):
            read_identity(tmp_path)
    content["hidden_state"]["of a later version"] = 1
    path.write_text(json.dumps(content))
    assert read_identity(tmp_path) == IDENTITY
