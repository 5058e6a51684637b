"""Checkpoints of a hub: from a hand-made cache, and from a small server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from golden_internvl import FOLDER

from navsim_recogdrive.vlm import VLMCheckpointError, VLMSettings, read_vlm_identity
from navsim_recogdrive.vlm.hub import checkpoint_directory

REPOSITORY = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
FILES = {
    "config.json": (FOLDER / "config.json").read_bytes(),
    "model.safetensors": (FOLDER / "model.safetensors").read_bytes(),
    "tokenizer_config.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "README.md": b"# A model\n",
    "modeling_internvl_chat.py": b"raise SystemExit('remote code was run')\n",
    "pytorch_model.bin": b"a pickle",
    "onnx/config.json": b"{}",
    "original/model.safetensors": b"another copy",
}
WANTED = {"config.json", "model.safetensors", "tokenizer_config.json", "merges.txt"}


class Hub(ThreadingHTTPServer):
    """The few endpoints of a model hub that a download needs.

    Repositories: ``org/model`` with the branch ``main`` and the tag ``v1``, ``org/gated``; no other exists.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Endpoints)
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> set[str]:
        marker = f"/resolve/{COMMIT}/"
        return {
            request.split(marker)[1] for request in self.requests if request.startswith("GET") and marker in request
        }


class Endpoints(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith(("/api/models/org/gated", "/org/gated")):
            return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        model = "/api/models/org/model"
        if path in (model, *(f"{model}/revision/{revision}" for revision in ("main", "v1", COMMIT))):
            siblings = [{"rfilename": name} for name in FILES]
            return self.json({"_id": "1", "id": "org/model", "sha": COMMIT, "private": False, "siblings": siblings})
        if path.startswith(f"{model}/revision/"):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        if path.startswith(f"{model}/tree/{COMMIT}"):
            return self.json(
                [
                    {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
                    for name, data in FILES.items()
                ]
            )
        name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
        if name in FILES:
            etag = hashlib.sha1(FILES[name]).hexdigest()
            return self.send(200, FILES[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        if path.startswith("/api/models/org/broken"):
            return self.send(500, b"", {"X-Error-Message": "out of order"})
        return self.send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def json(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def python(code: str, home: Path, **environment: str) -> str:
    """Run code in a process of its own, because huggingface_hub reads its environment once."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name}
    settings |= {"HF_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "HF_HUB_DISABLE_TELEMETRY": "1"}
    header = (
        "import sys\n"
        "from navsim_recogdrive.vlm import VLMCheckpointError, VLMSettings, read_hidden_size, read_vlm_identity\n"
        "from navsim_recogdrive.vlm.hub import checkpoint_directory\n"
        "def error(*arguments, **keywords):\n"
        "    try:\n"
        "        checkpoint_directory(*arguments, **keywords)\n"
        "    except VLMCheckpointError as raised:\n"
        "        print(str(raised).replace(chr(10), ' '))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", header + code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home.parent,
        env=settings | environment,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty ``HF_HOME``."""
    return tmp_path / "home"


def fill_cache(home: Path, names: set[str] = WANTED) -> Path:
    """Put a snapshot of ``org/model`` into a cache by hand."""
    repository = home / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in names:
        (snapshot / name).write_bytes(FILES[name])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_repository_is_downloaded_without_code_pickles_and_subfolders(hub, home):
    code = (
        "folder = checkpoint_directory('org/model')\n"
        "print(folder)\n"
        "print(read_vlm_identity(VLMSettings('org/model')).fingerprint)\n"
        "assert 'torch' not in sys.modules, 'heavy import'\n"
    )
    folder, fingerprint = python(code, home, HF_ENDPOINT=hub.url).split()
    assert {str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()} == WANTED
    assert hub.fetched() == WANTED
    assert fingerprint == read_vlm_identity(VLMSettings(FOLDER)).fingerprint
    looked_up = [request for request in hub.requests if "/revision/" in request or request.endswith("/org/model")]
    assert len(looked_up) == 1  # once per process

    hub.requests.clear()
    assert python("print(checkpoint_directory('org/model'))", home, HF_ENDPOINT=hub.url).strip() == folder
    assert not hub.fetched()
    hub.requests.clear()
    assert python("print(checkpoint_directory('org/model'))", home, HF_HUB_OFFLINE="1").strip() == folder
    assert not hub.requests


def test_the_hidden_size_needs_no_more_than_the_configuration(hub, home):
    assert python("print(read_hidden_size(VLMSettings('org/model')))", home, HF_ENDPOINT=hub.url).strip() == "64"
    assert hub.fetched() == {"config.json"}


def test_a_revision_is_asked_for(hub, home):
    code = f"print(checkpoint_directory('org/model', 'v1', config_only=True).name)\nerror('org/model', {OLDER[:7]!r})"
    found, message = python(code, home, HF_ENDPOINT=hub.url).splitlines()
    assert found == COMMIT
    assert any(request.endswith("/revision/v1") for request in hub.requests)
    expected = (
        f"'org/model' at revision '{OLDER[:7]}' does not exist, but the repository does: give one of its branches"
    )
    assert expected in message


def test_absent_private_and_gated_repositories_are_named_with_the_fix(hub, home):
    absent, gated = python("error('org/none')\nerror('org/gated')", home, HF_ENDPOINT=hub.url).splitlines()
    assert absent.startswith("'org/none' is no directory here, and the hub repository 'org/none' does not exist or is ")
    assert "log in with `hf auth login`" in absent
    assert "tiny_checkpoint" in absent
    broken = python("error('org/broken')", home, HF_ENDPOINT=hub.url)
    assert "'org/broken' is not, or not wholly, in the local cache" in broken
    assert "out of order" in broken
    assert gated.startswith("the hub repository 'org/gated' is gated: ask for access on its page, then log in with")


def test_a_cached_repository_works_offline_and_without_network(home):
    snapshot = fill_cache(home)
    code = "print(checkpoint_directory('org/model'))\nprint(read_hidden_size(VLMSettings('org/model')))"
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert python(code, home, **environment).split() == [str(snapshot), "64"]


def test_what_is_not_cached_is_an_error_that_names_the_cache_and_the_reason(home):
    offline = python("error('org/model')", home, HF_HUB_OFFLINE="1")
    assert (
        f"not wholly, in the local cache {home / 'hub'}, while HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE" in offline
    )
    unreachable = python("error('org/model')", home, HF_ENDPOINT="http://127.0.0.1:9")
    assert "while the hub cannot be reached (" in unreachable
    assert "check the network, the proxy and HF_ENDPOINT" in unreachable


def test_a_partly_cached_repository_is_an_error_that_names_what_is_absent(home):
    fill_cache(home, {"config.json"})
    code = (
        "print(read_hidden_size(VLMSettings('org/model')))\n"
        "try:\n"
        "    read_vlm_identity(VLMSettings('org/model'))\n"
        "except VLMCheckpointError as raised:\n"
        "    print(raised)\n"
    )
    size, message = python(code, home, HF_HUB_OFFLINE="1").splitlines()
    assert size == "64"
    assert "model.safetensors" in message or "not wholly, in the local cache" in message


def test_a_folder_has_no_revisions(tmp_path):
    with pytest.raises(VLMCheckpointError, match=r"revision 'main' was given with the folder .*leave revision empty"):
        checkpoint_directory(tmp_path, "main")


@pytest.mark.parametrize("path", ["absent", "./org/model", "a/b/c", "/org/model", "org/", "-org/model"])
def test_what_is_neither_a_folder_nor_an_id_is_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VLMCheckpointError, match="not a directory; give the directory of a downloaded VLM"):
        checkpoint_directory(path)


def test_a_folder_that_looks_like_an_id_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    assert checkpoint_directory("org/model") == Path("org/model")
