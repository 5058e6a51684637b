"""Where a VLM's files are: a folder, or a repository of the model hub."""

from __future__ import annotations

import re
from pathlib import Path

from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["*.json", "*.safetensors", "merges.txt"]
_FOLDERS = ["*/*"]
_HINT = (
    "give the directory of a downloaded VLM (config.json, safetensors weights, tokenizer files), for example "
    "from `hf download REPOSITORY --local-dir DIRECTORY`, or make a random one with "
    "`python -m navsim_recogdrive.vlm.tiny_checkpoint DIRECTORY`"
)

_found: dict[tuple[str, ...], Path] = {}


def checkpoint_directory(path: str | Path, revision: str | None = None, *, config_only: bool = False) -> Path:
    """Find a checkpoint's folder; of a hub repository, download what is not in the local cache yet.

    Downloads go through huggingface_hub with its own settings (``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``,
    ``HF_ENDPOINT``). Only configuration, safetensors and tokenizer files are taken: never code, never pickles. Without
    network, what is in the cache is used. A repository is looked up once per process: a branch that moves meanwhile
    does not mix two checkpoints.

    Args:
        path: a folder, or the id ``ORGANISATION/NAME`` of a hub repository.
        revision: branch, tag or commit of a repository; ``None`` for its default branch.
        config_only: of a repository, fetch ``config.json`` and nothing else.

    Returns:
        A folder with a ``config.json``.

    Raises:
        VLMCheckpointError: naming the path, what was looked for, and the fix.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise VLMCheckpointError(
                f"revision {revision!r} was given with the folder {str(path)!r}: a folder has no revisions; leave "
                "revision empty, or give the id of a hub repository"
            )
    elif _REPOSITORY.fullmatch(str(path)):
        directory = _repository(str(path), revision, config_only)
    else:
        raise VLMCheckpointError(f"no VLM checkpoint at {str(path)!r}: not a directory; {_HINT}")
    if not (directory / "config.json").is_file():
        raise VLMCheckpointError(f"no VLM checkpoint at {str(path)!r}: the directory has no config.json; {_HINT}")
    return directory


def _repository(repository: str, revision: str | None, config_only: bool) -> Path:
    """Download or find a hub repository."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    key = (repository, str(revision), str(config_only), str(constants.HF_HUB_CACHE))
    if key in _found and _found[key].is_dir():
        return _found[key]
    where = f"the hub repository {repository!r}" + ("" if revision is None else f" at revision {revision!r}")
    neither = f"{repository!r} is no directory here, and "
    offline = constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=["config.json"] if config_only else _FILES,
            ignore_patterns=_FOLDERS,
        )
    except GatedRepoError:
        raise VLMCheckpointError(
            f"{where} is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise VLMCheckpointError(
            f"{neither}{where} does not exist or is private: check the spelling, log in with `hf auth login` or set "
            f"HF_TOKEN, or {_HINT}"
        ) from None
    except RevisionNotFoundError:
        raise VLMCheckpointError(
            f"{where} does not exist, but the repository does: give one of its branches, tags or commits, or leave "
            "revision empty"
        ) from None
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({error.__cause__ or error})"
        raise VLMCheckpointError(
            f"{neither}{where} is not, or not wholly, in the local cache {constants.HF_HUB_CACHE}, while {reason}: "
            f"{'unset HF_HUB_OFFLINE' if offline else 'check the network, the proxy and HF_ENDPOINT'}, download it "
            f"elsewhere and copy it, or {_HINT}"
        ) from None
    except Exception as error:  # proxies, damaged downloads, full disks: each library raises its own
        raise VLMCheckpointError(f"{where} could not be fetched: {type(error).__name__}: {error}") from error
    _found[key] = Path(folder)
    return _found[key]
