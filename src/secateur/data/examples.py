"""Text to train on: instructions with their responses, or windows of running text.

Instructions are rows with `instruction`, `output` and perhaps `input`, as Alpaca's, or with a
`prompt` and its `completion` (see `fields.PAIRS`), in any file that rows are read from. The loss
is on the response alone unless the prompt is wanted too.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import SecateurError
from .fields import CHATS, TEXTS, TextOf, lowered, pair_of
from .given import first_row, is_given
from .rows import LINES, TABLES, file_rows
from .sources import HubSet, hub_rows, local_path
from .text_files import kind_of
from .tokens import Beginning, beginning, token_ids
from .windows import token_hash

# The label of a token that no loss is taken on (the one that torch's cross-entropy leaves out).
IGNORED = -100
INSTRUCTION_SETS = {"alpaca-cleaned": HubSet("yahma/alpaca-cleaned", field="output")}
# Of more instructions the seed chooses among the first so many.
_MOST = 250_000
_WITH_FIELDS = (*LINES, *TABLES, ".json", ".parquet")


@dataclass(frozen=True)
class Examples:
    """Token ids and labels, padded on the right with tokens that have no label."""

    ids: Int64[Tensor, "example token"]
    labels: Int64[Tensor, "example token"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> "Examples":
        """Some of the examples, no longer than the longest of them."""
        labels = self.labels[rows]
        told = (labels != IGNORED).any(dim=0).nonzero()
        length = int(told[-1]) + 1 if len(told) else 1
        return Examples(self.ids[rows, :length], labels[:, :length])

    @property
    def tokens(self) -> int:
        """How many tokens a loss is taken on."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def sha256(self) -> str:
        """Hash of ids and labels."""
        return token_hash(torch.stack([self.ids, self.labels]))

    @classmethod
    def of_windows(
        cls, windows: Int64[Tensor, "window token"], begin: Sequence[int] = ()
    ) -> "Examples":
        """Running text: every token but the first of a window is to be foretold.

        Where windows begin with tokens of their own, `begin`, those are not.
        """
        told = ~torch.isin(windows, torch.tensor(begin, dtype=torch.int64))
        return cls(windows, windows.where(told, IGNORED))

    @classmethod
    def padded(cls, rows: Sequence[tuple[list[int], int]], length: int) -> "Examples":
        """Rows of (ids, how many of them have no label), cut to `length` tokens."""
        longest = min(max(len(ids) for ids, _ in rows), length)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        labels = torch.full((len(rows), longest), IGNORED, dtype=torch.int64)
        for row, (tokens, prompt) in enumerate(rows):
            cut = torch.tensor(tokens[:longest])
            ids[row, : len(cut)] = cut
            labels[row, prompt : len(cut)] = cut[prompt:]
        return cls(ids, labels)


def is_instructions(source: Any) -> bool:
    """Whether `source` (a name, or rows) holds instructions and responses, not running text."""
    if is_given(source):
        return _asks(None if isinstance(source, Tensor) else first_row(source))
    if source in INSTRUCTION_SETS:
        return True
    path = local_path(source)
    if not path.is_file() or kind_of(path) not in _WITH_FIELDS:
        return False
    rows = (row for _, row in file_rows(path))
    return _asks(next(rows, None))


def _asks(row: Any) -> bool:
    """Whether a row is an instruction, and nothing that is text by itself."""
    if not isinstance(row, dict) or pair_of(row) is None:
        return False
    fields = lowered(row)
    # some sets have a whole prompt in `text` beside Alpaca's fields
    return "instruction" in fields or not any(fields.get(name) for name in (*TEXTS, *CHATS))


def instruction_examples(
    source: Any,
    tokenizer: Any,
    *,
    length: int,
    samples: int,
    seed: int,
    on_prompts: bool = False,
    bos: str = "document",
) -> Examples:
    """At most `samples` examples of at most `length` tokens, chosen by `seed`.

    The response ends with the tokenizer's end-of-text token. Examples whose prompt alone fills
    `length` are left out.

    Raises:
        SecateurError: no such file, not of that form, or no example left.
    """
    begin = beginning(tokenizer, bos)
    rows = list(itertools.islice(_instructions(source), _MOST))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = (_tokens(*pair, tokenizer, begin) for pair in map(rows.__getitem__, order))
    fitting = (
        (whole, 0 if on_prompts else asked)
        for whole, asked in texts
        if asked < min(length, len(whole))
    )
    found = list(itertools.islice(fitting, samples))
    if not found:
        raise SecateurError(
            f"{source} has no example whose response begins within {length} tokens.\n"
            "Give more data, or a larger --length."
        )
    return Examples.padded(found, length)


def _tokens(prompt: str, response: str, tokenizer: Any, begin: Beginning) -> tuple[list[int], int]:
    """Ids of prompt and response as one text, and how many of them are the prompt's."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    alone, whole = (token_ids(text, tokenizer, begin) for text in (prompt, prompt + response))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(alone, whole, strict=False))
    shared = sum(1 for _ in same)
    return [*whole, *([] if whole[-1:] == ends else ends)], shared


def _instructions(source: Any) -> Iterator[tuple[str, str]]:
    """Prompts and responses of rows."""
    clean = TextOf().clean
    for where, row in _rows(source):
        pair = pair_of(row)
        if pair is None:
            raise SecateurError(
                f"{where} is no instruction: expected an object like"
                ' {"instruction": "...", "input": "", "output": "..."}.'
            )
        yield clean(pair[0]), clean(pair[1])


def _rows(source: Any) -> Iterator[tuple[str, Any]]:
    if is_given(source):
        yield from ((f"Row {number}", row) for number, row in enumerate(source, start=1))
        return
    if source in INSTRUCTION_SETS:
        found = hub_rows(INSTRUCTION_SETS[source], use="calibration", seed=None)
        yield from ((f"{source}, entry {number}", row) for number, row in enumerate(found, start=1))
        return
    path: Path = local_path(source)
    yield from ((f"{path}, {where}", row) for where, row in file_rows(path))
