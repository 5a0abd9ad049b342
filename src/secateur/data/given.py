"""Text that Python code hands over: strings, rows of a data set, or tokens."""

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import SecateurError
from .fields import TextOf
from .shuffle import shuffled

# What stands for it where sources have names.
GIVEN = "given in Python"

_WANTED = (
    "Give the name of a text, a list of strings, rows with text in them, a datasets.Dataset, or"
    " tokens as a tensor [window, token]."
)


def is_given(source: Any) -> bool:
    """Whether `source` is text itself, and not the name of one."""
    if source is None or isinstance(source, str | Path | bytes):
        return False
    if isinstance(source, Mapping):
        names = ", ".join(map(str, source))
        raise SecateurError(f"A text was given in parts ({names[:80]}).\nGive one of them.")
    return isinstance(source, Iterable) or hasattr(source, "__getitem__")


def given_windows(source: Any) -> Int64[Tensor, "window token"] | None:
    """`source`, if it is windows of tokens: a tensor or array of whole numbers with two dimensions.

    Raises:
        SecateurError: it is a tensor, but not of that form.
    """
    shape = getattr(source, "shape", None)
    if not isinstance(source, Tensor) and not (hasattr(source, "dtype") and shape is not None):
        return None
    found = torch.as_tensor(source).detach().cpu()
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.ndim != 2 or not whole or not len(found) or found.shape[1] < 2:
        raise SecateurError(
            f"Tokens were given as a tensor of shape {list(found.shape)} and {found.dtype};"
            " expected whole numbers [window, token], at least two tokens a window."
        )
    found = found.to(torch.int64)
    if int(found.min()) < 0:
        raise SecateurError("A token that was given is negative; padding is no text. Cut it off.")
    return found


def given_documents(source: Any, text_of: TextOf, seed: int | None) -> Iterator[str]:
    """Texts of strings or rows, in an order that `seed` decides (None: in their own).

    Raises:
        SecateurError: a row without text, or no text at all.
    """
    texts = (text_of(row, f"Text {number}") for number, row in _rows(source, seed))
    found = False
    for text in texts if _ordered(source) else shuffled(texts, seed):
        if text.strip():
            found = True
            yield text.strip()
    if not found:
        raise SecateurError(f"There is no text in what was given.\n{_WANTED}")


def first_row(source: Any) -> Any:
    """The first row of what is given; None if it can be read only once, or has none."""
    rows = iter(source)
    return None if rows is source else next(rows, None)


def _ordered(source: Any) -> bool:
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


def _rows(source: Any, seed: int | None) -> Iterator[tuple[int, Any]]:
    if not _ordered(source):
        yield from enumerate(source, start=1)
        return
    order = list(range(len(source)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    for index in order:
        yield index + 1, source[index]
