"""Models of the Hugging Face hub: which of their files are fetched, and what they are called.

Of the weights only the files that are read come, and beside them what travels with a model. Many
repositories hold the same weights several times.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import (
    INDEX,
    LARGEST_COMPANION,
    chosen_file,
    listed_files,
    pickles,
    read_json,
    travelling,
)
from ..errors import SecateurError
from ..paths import typed_path

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SNAPSHOT = re.compile(r".*/models--(.+)/snapshots/[^/]+")
# Of earlier prunings and recoveries, and what a card takes over.
_HISTORY = ("README.md", "plan.json", "run.toml", "recovery.toml")


def local_folder(model: str, revision: str | None = None, *, config_only: bool = False) -> Path:
    """The folder of a model: `model` itself, or where the hub's files of that name are kept.

    A path that exists is a folder; any other name that the hub could have is asked for there, or,
    offline, looked up in its cache.

    Raises:
        SecateurError: neither a folder nor a model that the hub gives.
    """
    path = typed_path(model)
    if path.exists() or not is_hub_name(model):
        return path
    try:
        return _fetched(model, revision, config_only)
    except SecateurError:
        raise
    except Exception as error:  # the hub raises a dozen kinds, all meaning the same to a user
        raise SecateurError(
            f"There is no folder {model}, and the Hugging Face hub does not give a model {model}:"
            f" {_reason(error)}\nCheck the name, or download it first and give the folder."
        ) from error


def _reason(error: Exception) -> str:
    """Why the hub does not give a model, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return "its terms are to be accepted first, on huggingface.co (then: hf auth login)."
    if isinstance(error, RepositoryNotFoundError):
        return "it has none of that name, or it is private (then: hf auth login)."
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return "it cannot be reached, and the cache here has none of that name."
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_hub_name(name: str) -> bool:
    """Whether the hub could have a model of that name, and there is nothing here of that name."""
    return bool(_NAME.fullmatch(name)) and not Path(name).exists()


def hub_name(folder: Path) -> str | None:
    """The name on the hub of a folder in the hub's cache; None for other folders."""
    found = _SNAPSHOT.fullmatch(folder.resolve().as_posix())
    return found.group(1).replace("--", "/", 1) if found else None


def _fetched(model: str, revision: str | None, config_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    def get(names: Sequence[str]) -> Path:
        exact = [glob.escape(name) for name in names]
        return Path(snapshot_download(model, revision=revision, allow_patterns=exact))

    if config_only:
        return get(["config.json"])
    try:
        sizes = _listed(model, revision)
    except Exception:  # offline, the hub is down, the name is wrong: the cache may have it
        cached = _cached(model, revision)
        if cached is None:
            raise
        return cached
    known = [name for name in ("config.json", INDEX) if name in sizes]
    indexes = get([*known, *_other_indexes(sizes)])
    return get([*known, *_weights(indexes, sizes, model), *_beside(sizes)])


def _listed(model: str, revision: str | None) -> dict[str, int]:
    """By name, the size in bytes of every file of a model."""
    from huggingface_hub import HfApi

    tree: Any = HfApi().list_repo_tree(model, recursive=True, revision=revision)
    return {entry.path: entry.size for entry in tree if getattr(entry, "size", None) is not None}


def _cached(model: str, revision: str | None) -> Path | None:
    """The snapshot of a model that an earlier download left."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _other_indexes(sizes: dict[str, int]) -> list[str]:
    """Indexes that config.json may name."""
    return [name for name in sizes if "/" not in name and name.endswith(".safetensors.index.json")]


def _weights(folder: Path, sizes: dict[str, int], model: str) -> list[str]:
    """The files that hold the weights; `folder` has config.json and the indexes by now."""
    config = read_json(folder / "config.json") if "config.json" in sizes else {}
    chosen = chosen_file(sizes, config, model)
    if chosen is None:
        if any(name.endswith((".bin", ".pt", ".pth")) for name in sizes if "/" not in name):
            raise pickles(model)
        return []
    if not chosen.endswith(".json"):
        return [chosen]
    return [chosen, *listed_files(read_json(folder / chosen), f"{model}/{chosen}")]


def _beside(sizes: dict[str, int]) -> list[str]:
    """What travels with the model, and its history."""
    names = [name for name in travelling(sizes) if sizes[name] <= LARGEST_COMPANION]
    return [*names, *(name for name in _HISTORY if name in sizes)]
