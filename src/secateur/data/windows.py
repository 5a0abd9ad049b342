"""Windows of tokens: cut from documents, chosen by a seed, known by a hash."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import SecateurError

# Calibration windows are chosen out of so many times the tokens that they need: enough for chance,
# and no need to tokenise a whole corpus.
CHOICE = 4


@dataclass(frozen=True)
class Windows:
    """Token ids [window, token] and where they are from.

    `spare` is running text that no window was cut from: good for a quick held-out check.
    """

    ids: Int64[Tensor, "window token"]
    spare: Int64[Tensor, " other"]
    source: str

    @property
    def sha256(self) -> str:
        """Hash of the chosen tokens: two runs with the same one saw the same data."""
        return token_hash(self.ids)


def token_hash(ids: Int64[Tensor, "..."]) -> str:
    """SHA-256 of shape and ids (as int64, little-endian)."""
    digest = hashlib.sha256(f"{list(ids.shape)}".encode())
    digest.update(ids.contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def sample_windows(
    documents: Iterable[str | Tensor],
    tokenizer: Any,
    *,
    source: str,
    samples: int,
    length: int,
    seed: int,
    choice: int = CHOICE,
    spare: bool = False,
) -> Windows:
    """Choose `samples` windows of `length` tokens from the running text of `documents`.

    The text (or token ids) is cut into windows one after the other, so none overlap; `seed`
    chooses among `choice` times as many as are needed. If the text has fewer windows than asked
    for, all are taken. With `spare`, the last quarter of the text is left out and given back.

    Raises:
        SecateurError: not even one window.
    """
    wanted = choice * samples * length
    text = _stream(documents, tokenizer, source, length, wanted * 4 // 3 if spare else wanted)
    rest = len(text) // 4 if spare and len(text) * 3 // 4 >= length else 0
    used, rest_text = text[: len(text) - rest], text[len(text) - rest :]
    windows = cut(used, length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return Windows(windows[order[:samples].sort().values], rest_text, source)


def running_text(
    documents: Iterable[str | Tensor], tokenizer: Any, *, source: str, at_most: int | None
) -> Int64[Tensor, " token"]:
    """Token ids of `documents` one after the other, up to `at_most` tokens.

    Raises:
        SecateurError: fewer than two tokens.
    """
    return _stream(documents, tokenizer, source, 2, at_most)[:at_most]


def cut(text: Int64[Tensor, " all"], length: int) -> Int64[Tensor, "window token"]:
    """Windows of `length` tokens one after the other; no overlap, the tail is dropped."""
    return text[: len(text) // length * length].view(-1, length)


def _stream(
    documents: Iterable[str | Tensor],
    tokenizer: Any,
    source: str,
    length: int,
    at_most: int | None,
) -> Tensor:
    pieces: list[Tensor] = []
    count = 0
    for ids in _tokenised(documents, tokenizer):
        pieces.append(ids)
        count += len(ids)
        if at_most is not None and count >= at_most:
            break
    if count < length:
        raise SecateurError(
            f"The text of {source} has {count} tokens, fewer than one window of {length}.\n"
            f"Give more text{', or a smaller --length' if length > 2 else ''}."
        )
    return torch.cat(pieces)


def _tokenised(documents: Iterable[str | Tensor], tokenizer: Any) -> Iterator[Tensor]:
    for document in documents:
        if isinstance(document, Tensor):
            yield document
            continue
        yield torch.tensor(tokenizer(document, verbose=False)["input_ids"], dtype=torch.int64)
