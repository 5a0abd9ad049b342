"""Token ids of texts of any length, and what a text and a window begin with."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import SecateurError

Bos = Literal["auto", "each", "document", "never"]

# Texts of more characters are tokenised in pieces of no more: a tokenizer's memory is some hundred
# times its text.
PIECE = 2**16

# How much text on the two sides of a cut shows whether the tokens are the same without it.
_BESIDE = 64

# Where a text may be cut, best first: before a word; about white space; after a sign; anywhere.
_PLACES = (
    (re.compile(r"(?<=\w)(?= [^\W\d_])"), 16),
    (re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)"), 64),
    (re.compile(r"(?<=[^\w\s])"), 16),
    (re.compile(r"(?<=.)(?=.)", re.DOTALL), 16),
)


@dataclass(frozen=True)
class Beginning:
    """What texts and windows begin with: the token that says so, to models that are used to it.

    `mode` is `each` (every window), `document` (every text, and so a window only where a text
    begins there) or `never`; `ids` are the tokens (usually one, none where there is none), `own`
    those that the tokenizer puts before a text by itself.
    """

    mode: str = "document"
    ids: tuple[int, ...] = ()
    own: tuple[int, ...] = ()
    name: str = ""

    @property
    def window(self) -> tuple[int, ...]:
        """What every window begins with."""
        return self.ids if self.mode == "each" else ()

    def to_json(self) -> dict[str, str]:
        """The mode and the token, for records."""
        return {"mode": self.mode, "token": self.name}


def beginning(tokenizer: Any, bos: str = "auto") -> Beginning:
    """What `bos` means with this tokenizer: `auto` is `each` if it puts a token before a text.

    Raises:
        SecateurError: `each`, and there is no such token.
    """
    own, _ = _around(tokenizer)
    if bos == "auto":
        bos = "each" if own else "never"
    ids = own
    if bos == "each" and not own:
        if tokenizer.bos_token_id is None:
            raise SecateurError(
                "The tokenizer has no beginning-of-text token for each window to begin with.\n"
                "Type: --bos never"
            )
        ids = (int(tokenizer.bos_token_id),)
    ids = () if bos == "never" else ids
    return Beginning(bos, ids, own, " ".join(map(str, tokenizer.convert_ids_to_tokens(list(ids)))))


def token_pieces(text: str, tokenizer: Any, begin: Beginning) -> Iterator[Tensor]:
    """Token ids of one text, [token]; of a long one in pieces, one after the other.

    The pieces together are the tokens of the whole text, wherever a place to cut is found (see
    `_holds`) that changes no token; a text of one word without end may differ at the cuts.
    """
    if len(text) <= PIECE:
        yield torch.tensor(token_ids(text, tokenizer, begin), dtype=torch.int64)
        return
    _, end = _around(tokenizer)
    if begin.ids:
        yield torch.tensor(begin.ids, dtype=torch.int64)
    place, before = 0, ""
    while place < len(text):
        until = _end_of_piece(text, place, tokenizer)
        yield torch.tensor(_after(tokenizer, before, text[place:until]), dtype=torch.int64)
        place, before = until, _before(text, until)
    if end:
        yield torch.tensor(end, dtype=torch.int64)


def token_ids(text: str, tokenizer: Any, begin: Beginning) -> list[int]:
    """Token ids of one text, whole, that begins as `begin` says."""
    ids = _ids(tokenizer, text)
    return [*begin.ids, *ids[len(begin.own) :]] if _begins(ids, begin.own) else ids


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, verbose=False, **options)["input_ids"])


def _bare(tokenizer: Any, text: str) -> list[int]:
    return _ids(tokenizer, text, add_special_tokens=False)


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text, by what it does to a short one."""
    whole, bare = _ids(tokenizer, "a"), _bare(tokenizer, "a")
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


def _end_of_piece(text: str, start: int, tokenizer: Any) -> int:
    """Where the piece that begins at `start` ends; the best place that changes no token."""
    last = start + PIECE
    if last >= len(text):
        return len(text)
    first = max(start + PIECE // 2, last - 4096)
    for pattern, tries in _PLACES:
        places = [found.start() for found in pattern.finditer(text, first, last)]
        for place in reversed(places[-tries:]):
            if _holds(text, place, tokenizer):
                return place
    return last


def _holds(text: str, place: int, tokenizer: Any) -> bool:
    """Whether what comes before a cut has the same tokens with and without what comes after it."""
    before = _before(text, place)
    alone = _bare(tokenizer, before)
    return _begins(_bare(tokenizer, before + text[place : place + _BESIDE]), alone)


def _before(text: str, place: int) -> str:
    """Some words before a cut."""
    near = text[max(0, place - _BESIDE) : place]
    word = re.search(r"\s(?=\S+\s)", near)
    return near[word.end() :] if word else near


def _after(tokenizer: Any, before: str, text: str) -> list[int]:
    """Tokens of `text`, which follows `before`: some tokenizers begin every text with a space."""
    if not before:
        return _bare(tokenizer, text)
    alone, both = _bare(tokenizer, before), _bare(tokenizer, before + text)
    return both[len(alone) :] if _begins(both, alone) else _bare(tokenizer, text)


def _begins(ids: Sequence[int], start: Sequence[int]) -> bool:
    return list(ids[: len(start)]) == list(start)
