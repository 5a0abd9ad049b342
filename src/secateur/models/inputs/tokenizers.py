"""The tokenizer of a folder: whether there is one, and which."""

from pathlib import Path
from typing import Any

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a file that a tokenizer can be read from."""
    return any((folder / name).is_file() for name in _FILES)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer, without running code that comes with it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
