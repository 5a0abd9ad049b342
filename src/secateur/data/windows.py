"""Windows of tokens: cut from documents, chosen by a seed, known by a hash."""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import SecateurError
from ..progress import track
from .tokens import Beginning, beginning, token_pieces

# Calibration windows are chosen out of so many times the tokens that they need: enough for chance,
# and no need to tokenise a whole corpus.
CHOICE = 4

# Of token ids that nothing was put before.
AS_IT_IS = Beginning()


@dataclass(frozen=True)
class Windows:
    """Token ids [window, token] and where they are from.

    `spare` is running text that no window was cut from: good for a quick held-out check. `begin`
    says what every window, or every text, begins with.
    """

    ids: Int64[Tensor, "window token"]
    spare: Int64[Tensor, " other"]
    source: str
    begin: Beginning = AS_IT_IS

    @property
    def sha256(self) -> str:
        """Hash of the chosen tokens: two runs with the same one saw the same data."""
        return token_hash(self.ids)


@dataclass(frozen=True)
class Text:
    """Running token ids [token], and what every window that is cut from them begins with."""

    ids: Int64[Tensor, " token"]
    begin: Beginning = AS_IT_IS

    def windows(self, length: int) -> Int64[Tensor, "window token"]:
        """Windows of `length` tokens one after the other."""
        return cut(self.ids, length, self.begin.window)


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
    bos: str = "document",
    stage: str = "reading text",
) -> Windows:
    """Choose `samples` windows of `length` tokens from the running text of `documents`.

    The text (or token ids) is cut into windows one after the other, so none overlap; `seed`
    chooses among `choice` times as many as are needed, and no more text is read. If the text has
    fewer windows than asked for, all are taken. With `spare`, the last quarter of the text is left
    out and given back. `bos` is what `beginning` takes; `stage` is for the progress bar.

    Raises:
        SecateurError: not even one window.
    """
    begin = beginning(tokenizer, bos)
    wanted = choice * samples * length
    wanted = wanted * 4 // 3 if spare else wanted
    ticks = (wanted, length, "window")
    text = _stream(documents, tokenizer, begin, wanted, ticks, stage)
    rest = len(text) // 4 if spare and len(text) * 3 // 4 >= length else 0
    used, rest_text = text[: len(text) - rest], text[len(text) - rest :]
    windows = cut(used, length, begin.window)
    if not len(windows):
        raise too_short(source, len(text), length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return Windows(windows[order[:samples].sort().values], rest_text, source, begin)


def running_text(
    documents: Iterable[str | Tensor],
    tokenizer: Any,
    *,
    source: str,
    at_most: int | None,
    bos: str = "document",
) -> Text:
    """Token ids of `documents` one after the other, up to `at_most` tokens.

    Raises:
        SecateurError: fewer than two tokens.
    """
    begin = beginning(tokenizer, bos)
    ticks = (at_most or 0, 1000, "thousand tokens")
    ids = _stream(documents, tokenizer, begin, at_most, ticks)[:at_most]
    if len(ids) < 2:
        raise too_short(source, len(ids), 2)
    return Text(ids, begin)


def cut(
    text: Int64[Tensor, " all"], length: int, begin: Sequence[int] = ()
) -> Int64[Tensor, "window token"]:
    """Windows of `length` tokens one after the other; no overlap, the tail is dropped.

    Every window begins with the tokens `begin`, which take the place of as many of the text; where
    the text has them there already, they are not doubled.
    """
    if not begin:
        return text[: len(text) // length * length].view(-1, length)
    start = torch.tensor(begin, dtype=text.dtype)
    size, body = len(start), length - len(start)
    found, place = [], 0
    while body > 0 and place + body <= len(text):
        place += size if torch.equal(text[place : place + size], start) else 0
        if place + body > len(text):
            break
        found.append(torch.cat([start, text[place : place + body]]))
        place += body
    return torch.stack(found) if found else text.new_empty(0, length)


def too_short(source: str, tokens: int, length: int) -> SecateurError:
    """The error of a text without one whole window."""
    return SecateurError(
        f"The text of {source} has {tokens} tokens, fewer than one window of {length}.\n"
        f"Give more text{', or a smaller --length' if length > 2 else ''}."
    )


def _stream(
    documents: Iterable[str | Tensor],
    tokenizer: Any,
    begin: Beginning,
    at_most: int | None,
    ticks: tuple[int, int, str],
    stage: str = "reading text",
) -> Tensor:
    """Tokens until there are `at_most`; `ticks` are those to expect, those of a unit, its name.

    Where a text is read to its end, nobody knows how far that is: 0.
    """
    pieces: list[Tensor] = []

    def read() -> Iterator[None]:
        count = 0
        for ids in _tokenised(documents, tokenizer, begin):
            pieces.append(ids)
            before, count = count, count + len(ids)
            most = expected or count
            yield from [None] * (min(count, most) // unit - min(before, most) // unit)
            if at_most is not None and count >= at_most:
                return

    expected, unit, name = ticks
    total = max(1, expected // unit) if expected else 0
    for _ in track(read(), stage, total, name):
        pass
    if isinstance(documents, Generator):
        documents.close()  # and it tells now what it has to
    return torch.cat([torch.zeros(0, dtype=torch.int64), *pieces])


def _tokenised(
    documents: Iterable[str | Tensor], tokenizer: Any, begin: Beginning
) -> Iterator[Tensor]:
    for document in documents:
        if isinstance(document, Tensor):
            yield document
        else:
            yield from token_pieces(document, tokenizer, begin)
