"""The files beside the weights: tokenizer, templates, generation config, licence, use policy.

They come without anything that would make a loader run code: programs stay behind, and so do the
keys by which JSON files ask for some.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint import companions
from ..progress import note

# By these keys a JSON file asks its reader to run code from the folder or the hub.
_ASKING = ("auto_map", "custom_generate", "custom_pipelines")
# What a tokenizer writes anew that needs code as it is.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
# transformers 4 knows the classes of transformers 5 that have no model by these names.
_OLD_CLASSES = {
    "TokenizersBackend": "PreTrainedTokenizerFast",
    "PythonBackend": "PreTrainedTokenizer",
}


def copy_companions(
    folder: Path,
    origin: Path | None,
    *,
    tokenizer: Any,
    model: Any,
    adapted: bool = False,
    read_as: str | None = None,
) -> None:
    """Bring along what belongs to the original model besides its weights and config.

    From a folder files are copied; a live `model` (origin None) and its `tokenizer` write theirs.
    The tokenizer files of an `adapted` model may need code that is left behind: `tokenizer` (None:
    none) writes its own instead. `read_as` is the class that reads the folder's tokenizer where the
    model's type decides: a result of another type states it. What stays
    behind is told.
    """
    if origin is not None:
        _copy(origin, folder, without=_TOKENIZER if adapted else ())
    if tokenizer is not None and (origin is None or adapted):
        _write(tokenizer.save_pretrained, folder)
        read_as = type(tokenizer).__name__
    if read_as is not None:
        _state_class(folder / "tokenizer_config.json", read_as)
    generation = getattr(model, "generation_config", None)
    if origin is None and generation is not None:

        def save(place: Path) -> None:
            # `save_pretrained` refuses settings that a folder may well have (a temperature without
            # sampling), and they are not ours to judge.
            unsaid = ["compile_config"]  # as there
            generation.to_json_file(place / "generation_config.json", keys_to_pop=unsaid)

        _write(save, folder)


def _write(save: Callable[[Path], Any], folder: Path) -> None:
    """Let `save` write files, and take those that travel (it may bring code along)."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        place = Path(name)
        save(place)
        _copy(place, folder)


def _copy(origin: Path, folder: Path, without: tuple[str, ...] = ()) -> None:
    names, notes = companions(origin)
    for message in notes:
        note(message)
    for name in names:
        if any(fnmatch(name, pattern) for pattern in without):
            continue
        try:
            source = (origin / name).open("rb")
        except OSError as error:  # since it was looked at
            note(f"left behind (cannot be read: {error.strerror}): {name}")
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with source:
            if name.endswith(".json"):
                _copy_json(name, source.read(), folder)
            else:
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(source, file)


def _copy_json(name: str, data: bytes, folder: Path) -> None:
    """Write a JSON file byte for byte, or without the keys that ask for code."""
    config = "config" in PurePosixPath(name).name.lower()
    if config or any(key.encode() in data for key in _ASKING):
        gone: set[str] = set()
        try:
            value = _without_code(json.loads(data), config, gone)
        except (ValueError, RecursionError):  # who can tell what a laxer reader would find in it
            note(f"left behind (not JSON): {name}")
            return
        if gone:
            note(f"{name} came without {', '.join(sorted(gone))}, which asks for code")
            data = (json.dumps(value, indent=2) + "\n").encode()
    (folder / name).write_bytes(data)


def _without_code(value: Any, config: bool, gone: set[str]) -> Any:
    """`value` without the keys that ask for code; `gone` gets their names.

    A vocabulary may have such a word, with a number.
    """
    if isinstance(value, list):
        return [_without_code(one, config, gone) for one in value]
    if not isinstance(value, dict):
        return value
    asking = {
        key
        for key, one in value.items()
        if key in _ASKING and (config or isinstance(one, dict | list | str))
    }
    gone |= asking
    return {
        key: _without_code(one, config, gone) for key, one in value.items() if key not in asking
    }


def _state_class(path: Path, name: str) -> None:
    """State the tokenizer's class, by a name that older transformers know, too."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stated = str(config.get("tokenizer_class"))
    known = _OLD_CLASSES.get(name, name)
    if stated.removesuffix("Fast") == known.removesuffix("Fast"):
        return
    config["tokenizer_class"] = known
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
