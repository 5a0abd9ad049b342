"""What this program writes into a folder, so that --force replaces nothing else."""

import json
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# Each of them says with which version of this program it was written.
RECOVERY, EXPORT = "recovery.toml", "export.toml"
_RECORDS = ("run.toml", RECOVERY, "conversion.toml", EXPORT)
_FILES = (
    "config.json",
    "generation_config.json",
    "modeling_secateur.py",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "plan.json",
    "run.toml",
    "recovery.toml",
    "conversion.toml",
    EXPORT,
    "Modelfile",
    "README.md",
    "comparison.json",
    "comparison.csv",
    "comparison.html",
    "report.json",
    "report.html",
    # the companions of a model, see `export.copy_companions`
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
)
_FOLDERS = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "README.md"),
    "additional_chat_templates": ("*.jinja",),
}
_LARGEST = 2**24  # no plan is larger; what is larger is not read


def written_by_us(folder: Path) -> bool:
    """Whether a record in `folder` says that this program made it."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    plan, table = _record(folder / "plan.json"), _record(folder / "comparison.json")
    records = [_record(folder / name) for name in _RECORDS]
    return str(plan.get("format", "")).startswith("secateur-plan-") or any(
        "secateur" in _part(one, "versions") for one in (table, *records)
    )


def foreign(folder: Path, ignored: Iterable[Path] = ()) -> str | None:
    """The name of the first thing in `folder` that this program does not write; None: nothing."""
    left_out, recorded = set(ignored), _recorded(folder)
    for entry in sorted(folder.iterdir()):
        if entry in left_out or known(entry):
            continue
        files = set(_files(entry, folder))
        if files and files <= recorded:
            continue
        return entry.name
    return None


def companions_beside(folder: Path) -> list[str]:
    """Files of the original model in `folder` that are not known by their names: for its record."""
    unknown = [entry for entry in sorted(folder.iterdir()) if not known(entry)]
    return [name for entry in unknown for name in _files(entry, folder)]


def _files(entry: Path, folder: Path) -> list[str]:
    """The files at or below `entry`, as paths from `folder`; a link is one, whatever it is to."""
    below = sorted(entry.rglob("*")) if entry.is_dir() and not entry.is_symlink() else [entry]
    return [
        one.relative_to(folder).as_posix() for one in below if one.is_symlink() or not one.is_dir()
    ]


def _recorded(folder: Path) -> set[str]:
    """What our records in `folder` say that came with the model."""
    found: set[str] = set()
    for name in _RECORDS:
        listed = _record(folder / name).get("companions")
        found |= {str(one) for one in listed} if isinstance(listed, list) else set()
    return found


def known(entry: Path) -> bool:
    """Whether this program writes something of that name and kind."""
    if entry.is_symlink():
        return False
    if entry.is_dir():
        inside = _FOLDERS.get(entry.name)
        return inside is not None and all(
            one.is_file() and _matches(one.name, inside) for one in entry.iterdir()
        )
    return _matches(entry.name, _FILES)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _record(file: Path) -> dict[str, Any]:
    """What the file holds; nothing if it is no record at all, for whatever reason."""
    parse: Any = tomllib.loads if file.suffix == ".toml" else json.loads
    try:
        if file.is_symlink() or file.stat().st_size > _LARGEST:
            return {}
        found = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
