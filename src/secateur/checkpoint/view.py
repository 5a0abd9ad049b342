"""The weights of a model as a view: names and shapes, and how one tensor is read.

What is done to weights on their way from one folder to another are functions from views to views.
None of them reads before it is asked for a tensor, or keeps one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SecateurError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor that is not in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.elements * self.dtype.itemsize

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The weights of one model, by tensor name, in the order of the model.

    `read` gives one tensor, which the caller must not change in place; a view without it has names
    and shapes alone. `read_rows` gives some rows of one, and `read_head` what stands for it in a
    fingerprint, where there is a way to it that reads less than all. `notes` tell the user how the
    view came about.
    """

    specs: Mapping[str, TensorSpec]
    read: Callable[[str], Tensor] | None = None
    read_head: Callable[[str], Tensor] | None = None
    read_rows: Callable[[str, int, int], Tensor] | None = None
    notes: tuple[str, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`.

        Raises:
            SecateurError: only names and shapes are known.
        """
        if self.read is None:
            raise SecateurError(f"The tensor {name} was not read: only config.json was opened.")
        return self.read(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The rows [start, stop) of `name`."""
        if self.read_rows is None:
            return self.tensor(name)[start:stop]
        return self.read_rows(name, start, stop)

    def head(self, name: str) -> Tensor:
        """The first row of `name` as it is stored (all of it, if it has no dimension)."""
        if self.read_head is not None:
            return self.read_head(name)
        return self.rows(name, 0, 1) if self.specs[name].shape else self.tensor(name)


class OnDemand(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, and not kept: `make` gives one by its name."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def held(tensors: Mapping[str, Tensor]) -> View:
    """Tensors that are in memory, themselves and no copies."""
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    return View(specs, tensors.__getitem__)


def renamed(view: View, names: Mapping[str, str]) -> View:
    """The tensors that `names` has, in its order: by their new name the one that they have."""
    return View(
        {new: view.specs[old] for new, old in names.items()},
        view.read and (lambda name: view.tensor(names[name])),
        lambda name: view.head(names[name]),
        notes=view.notes,
    )


def only(view: View, names: Iterable[str]) -> View:
    """The tensors `names`, in this order."""
    return renamed(view, {name: name for name in names})


def together(view: View, over: View) -> View:
    """The tensors of both; of two with one name that of `over`, in the place of the other."""

    def of(name: str) -> View:
        return over if name in over.specs else view

    return View(
        {**view.specs, **over.specs},
        lambda name: of(name).tensor(name),
        lambda name: of(name).head(name),
        notes=view.notes,
    )


def zero_filled(view: View, expected: Mapping[str, TensorSpec]) -> View:
    """The tensors that are `expected`, in that order; zeros where `view` has none, in its dtype."""
    dtype = next(iter(view.specs.values())).dtype
    blank = {n: replace(s, dtype=dtype) for n, s in expected.items() if n not in view.specs}
    zeros = View(blank, lambda name: torch.zeros(blank[name].shape, dtype=dtype))
    return only(together(view, zeros), expected)
