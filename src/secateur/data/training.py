"""Text to train on: instructions with their responses, or windows of running text.

An instruction file is JSON (a list) or JSON lines of objects with `instruction`, `output` and
perhaps `input`, as Alpaca's. The loss is on the response alone unless the prompt is wanted too.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import SecateurError
from .sources import HubSet, hub_rows
from .windows import token_hash

# The label of a token that no loss is taken on (the one that torch's cross-entropy leaves out).
IGNORED = -100
INSTRUCTION_SETS = {"alpaca-cleaned": HubSet("yahma/alpaca-cleaned", field="output")}
_FIELDS = ("instruction", "output")


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
    def of_windows(cls, windows: Int64[Tensor, "window token"]) -> "Examples":
        """Running text: every token but the first of a window is to be foretold."""
        return cls(windows, windows)

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


def is_instructions(source: str) -> bool:
    """Whether `source` holds instructions and responses rather than running text."""
    if source in INSTRUCTION_SETS:
        return True
    path = Path(source).expanduser()
    if not path.is_file():
        return False
    if path.suffix == ".json":
        return True
    if path.suffix != ".jsonl":
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return '"instruction"' in first and '"output"' in first


def instruction_examples(
    source: str,
    tokenizer: Any,
    *,
    length: int,
    samples: int,
    seed: int,
    on_prompts: bool = False,
) -> Examples:
    """At most `samples` examples of at most `length` tokens, chosen by `seed`.

    The response ends with the tokenizer's end-of-text token. Examples whose prompt alone fills
    `length` are left out.

    Raises:
        SecateurError: no such file, not of that form, or no example left.
    """
    rows = list(itertools.islice(_instructions(source), None))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[tuple[list[int], int]] = []
    for index in order:
        if len(found) == samples:
            break
        prompt, whole = _tokens(rows[index], tokenizer)
        if len(prompt) < min(length, len(whole)):
            found.append((whole, 0 if on_prompts else len(prompt)))
    if not found:
        raise SecateurError(
            f"{source} has no example whose response begins within {length} tokens.\n"
            "Give more data, or a larger --length."
        )
    return Examples.padded(found, length)


def prompt_of(row: Mapping[str, Any]) -> str:
    """The text before the response."""
    parts = [f"### Instruction:\n{row['instruction']}"]
    if row.get("input"):
        parts.append(f"### Input:\n{row['input']}")
    return "\n\n".join([*parts, "### Response:\n"])


def _tokens(row: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of prompt and response; the first are a beginning of the second."""
    prompt = tokenizer(prompt_of(row), verbose=False)["input_ids"]
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if prompt and prompt[-1] in ends:  # some tokenizers end every text
        prompt = prompt[:-1]
    response = tokenizer(str(row["output"]), add_special_tokens=False, verbose=False)["input_ids"]
    return prompt, [*prompt, *response, *ends]


def _instructions(source: str) -> Iterator[Mapping[str, Any]]:
    if source in INSTRUCTION_SETS:
        rows: Iterator[Any] = hub_rows(INSTRUCTION_SETS[source], use="calibration", seed=None)
    else:
        rows = _read(Path(source).expanduser())
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or not all(isinstance(row.get(f), str) for f in _FIELDS):
            raise SecateurError(
                f"{source}, entry {number} is no instruction: expected an object like"
                ' {"instruction": "...", "input": "", "output": "..."}.'
            )
        yield row


def _read(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return iter([json.loads(line) for line in text.split("\n") if line.strip()])
        rows = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"it is not JSON ({error})"
        raise SecateurError(
            f"Cannot read {path}: {reason}.\nGive a .json list or .jsonl of instructions, or text."
        ) from error
    if not isinstance(rows, list):
        raise SecateurError(f"{path} is not a JSON list of instructions.")
    return iter(rows)
