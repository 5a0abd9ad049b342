"""Rows of a file, whatever it is written in, one after the other and never the whole file."""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .fields import is_row
from .text_files import LONGEST, extra, kind_of, lines_of, no_nul, opened_text, told, unreadable

SEPARATOR = "<|endoftext|>"
# A text of more characters comes as several: so much of it is in memory at once.
LONG = 2**23
_BLOCK = 2**20

# Where a row stands, for messages ("line 3"), and the row: a text, or an object of fields.
Row = tuple[str, Any]

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".txt", *LINES, ".json", *TABLES, ".parquet")


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file: what it is follows from its suffix, and is plain text if from nothing.

    Raises:
        SecateurError: it cannot be read, or is not what its suffix says.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parquet(path)
        return
    with opened_text(path, newline="" if kind in TABLES else None) as file:
        if kind in LINES:
            yield from _json_lines(path, file)
        elif kind == ".json":
            yield from _json(path, file)
        elif kind in TABLES:
            yield from _table(path, file, TABLES[kind])
        else:
            yield from (("", text) for text in _parts(path, file))


def _parts(path: Path, file: io.TextIOWrapper) -> Iterator[str]:
    """The texts between separators; long ones in pieces that end where words do."""
    held = ""
    while block := file.read(_BLOCK):
        *whole, held = (held + no_nul(path, block)).split(SEPARATOR)
        yield from whole
        while len(held) > LONG:
            end = word_end(held, LONG // 2, LONG)
            yield held[:end]
            held = held[end:]
    yield held


def word_end(text: str, first: int, last: int) -> int:
    """The last place in [first, last) where a line ends, or else a word; `last` if there is none.

    What lies before the place and what comes from it on are the two parts.
    """
    for space in ("\n", " "):
        found = text.rfind(space, first, last)
        if found > first:
            return found
    return last - len(SEPARATOR)  # one that began there is not torn


def _json_lines(path: Path, file: io.TextIOWrapper) -> Iterator[Row]:
    for number, line in enumerate(lines_of(path, file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise unreadable(
                path,
                f"line {number} is not JSON ({error.msg}): expected an object like"
                ' {"text": "..."} on each line',
            ) from error
        except (ValueError, RecursionError) as error:
            raise unreadable(path, f"line {number} is not JSON: {_why(error)}") from error
        yield f"line {number}", row


def _json(path: Path, file: io.TextIOWrapper) -> Iterator[Row]:
    """The entries of a list; objects one after the other; an object, or the one list in it."""
    values = _Values(path, file)
    rows = values.entries() if values.peek() == "[" else values.sequence()
    yield from ((f"entry {number}", row) for number, row in enumerate(rows, start=1))


class _Values:
    """JSON values out of a file that is read as far as they need."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._ended = "", 0, False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def entries(self) -> Iterator[Any]:
        """What is in a list."""
        self._at += 1
        if self.peek() == "]":
            return
        while True:
            yield self._value()
            mark = self.peek()
            self._at += 1
            if mark == "]":
                break
            if mark != ",":
                raise self._wrong("expected a comma or the end of the list")
        if self.peek():
            raise self._wrong("something follows the list")

    def sequence(self) -> Iterator[Any]:
        """Objects one after the other, or what is in a single one."""
        if not self.peek():
            return
        first = self._value()
        if self.peek():
            yield first
            while self.peek():
                yield self._value()
        else:
            yield from self._inside(first)

    def _inside(self, value: Any) -> list[Any]:
        """A row alone; or the rows of the one list that an object has."""
        if not isinstance(value, Mapping) or is_row(value):
            return [value]
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        return lists[0] if len(lists) == 1 else [value]

    def _value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._wrong(error.msg) from error
                self._more()
            except (ValueError, RecursionError) as error:
                raise self._wrong(_why(error)) from error
            else:
                self._at = end
                return value

    def _more(self) -> None:
        """Twice as much text as is there, so that a long value is not tried too often."""
        rest = self._text[self._at :]
        if len(rest) > LONGEST:
            raise self._wrong(
                f"a value has more than {LONGEST // 10**6} million characters; write .jsonl"
            )
        block = self._file.read(max(_BLOCK, len(rest)))
        self._ended = not block
        self._text, self._at = rest + no_nul(self._path, block), 0

    def _wrong(self, why: str) -> Exception:
        return unreadable(self._path, f"it is not JSON ({why})")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "digits" in str(error) else str(error)


def _table(path: Path, file: io.TextIOWrapper, delimiter: str) -> Iterator[Row]:
    """Rows of a table whose first line has the names of its columns."""
    csv.field_size_limit(LONGEST)
    lines = lines_of(path, file)
    head = next(lines, "")
    if delimiter == "," and "," not in head:
        delimiter = next((mark for mark in (";", "\t") if mark in head), delimiter)
    reader = csv.reader(itertools.chain([head], lines), delimiter=delimiter)
    try:
        names = next(reader, [])
        for cells in reader:
            if cells:
                yield f"line {reader.line_num}", dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise unreadable(path, f"line {reader.line_num}: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    extra("pyarrow")
    parquet = extra("pyarrow.parquet") if path.is_file() else None
    with told(path):
        if parquet is None:
            raise unreadable(path, "there is no such file")
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
