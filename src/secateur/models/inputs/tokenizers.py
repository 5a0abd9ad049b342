"""Whether a folder has a tokenizer."""

from pathlib import Path

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a file that a tokenizer can be read from."""
    return any((folder / name).is_file() for name in _FILES)
