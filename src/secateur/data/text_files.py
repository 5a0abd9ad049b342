"""Text files as text: decompressed, decoded as UTF-8, refused by name where they are no text."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import SecateurError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
READ = ".txt, .jsonl, .json, .csv, .tsv or .parquet, perhaps .gz or .zst"

# No row and no line is longer, in characters: what is longer is no row (and would fill the memory).
LONGEST = 2**26

# What the extras are for, by the module that they bring.
_EXTRAS = {
    "zstandard": ("zst", ".zst files"),
    "pyarrow": ("hub", ".parquet files"),
    "datasets": ("hub", "data sets of the Hugging Face hub"),
}


def kind_of(path: Path) -> str:
    """The suffix that says what a file is, without that of its compression: `.jsonl`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def extra(module: str) -> Any:
    """A module that an extra of this package brings.

    Raises:
        SecateurError: it is not installed; the message has the line to type.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name, what = _EXTRAS[module]
        raise SecateurError(
            f"Reading {what} needs the package {module}.\n"
            f'Type: pip install "secateur[{name}]", or give a local .txt or .jsonl file.'
        ) from error


@contextmanager
def told(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read, as one line that names it."""
    try:
        yield
    except SecateurError:
        raise
    except (OSError, EOFError, UnicodeError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise unreadable(path, _reason(error)) from error
    except RecursionError as error:
        raise unreadable(path, "it is nested too deeply") from error
    except Exception as error:  # zstandard's and pyarrow's have no base of their own
        if type(error).__module__.partition(".")[0] not in ("zstandard", "pyarrow"):
            raise
        raise unreadable(path, _reason(error)) from error


def unreadable(path: Path, reason: str) -> SecateurError:
    """The error of a file that cannot be read."""
    return SecateurError(f"Cannot read {path}: {reason}.\nGive UTF-8 text: {READ}.")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return said[:200] or type(error).__name__


@contextmanager
def opened_text(path: Path, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """`path` as text: decompressed by its suffix, without a byte order mark.

    Raises:
        SecateurError: it cannot be read, or is UTF-16 or no text; while it is read, too.
    """
    with told(path), _decompressed(path) as binary:
        buffered = io.BufferedReader(binary)
        _check_text(path, buffered.peek(4096)[:4096])
        yield io.TextIOWrapper(buffered, encoding="utf-8-sig", newline=newline)


def _decompressed(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return extra("zstandard").open(path, "rb")
    opening: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix)
    return opening(path, "rb") if opening is not None else io.FileIO(path)


def _check_text(path: Path, head: bytes) -> None:
    """Name what is commonly taken for text and is none."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    halves = head[: len(head) // 2 * 2]
    empty = max((halves[start::2].count(0) for start in (0, 1)), default=0)
    if marked or (halves and empty > len(halves) // 4):  # every other byte of English is 0
        raise unreadable(path, "it is UTF-16, not UTF-8")
    no_nul(path, "\0" if b"\0" in head else "")


def no_nul(path: Path, text: str) -> str:
    """`text`, if it has no NUL.

    Raises:
        SecateurError: it has, and so `path` is no text.
    """
    if "\0" in text:
        raise unreadable(path, "it has NUL bytes, and so it is not text")
    return text


def lines_of(path: Path, file: io.TextIOWrapper) -> Iterator[str]:
    """Lines with their ends, each of bounded length.

    Raises:
        SecateurError: a line is longer than any row.
    """
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise unreadable(path, f"a line has more than {LONGEST // 10**6} million characters")
        yield no_nul(path, line)
