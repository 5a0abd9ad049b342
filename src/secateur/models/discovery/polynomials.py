"""From numbers in two tiny models to polynomials in the letters of a layout.

A polynomial of at most two terms is sought that gives the number found in each of the tiny models;
the simplest one wins. The sizes of the tiny models are chosen so that it is the right one; that
traced layouts equal the declared ones is the test of it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from ...structure.size import ONE, ZERO, E, I, K, Size, d, r

_MONOMIALS = (ONE, d, I, E, r * d, K * d, K * r * d, r, K, K * r, E * I)
_MOST = 4


def polynomial_of(numbers: Sequence[int], values: Sequence[Mapping[str, int]]) -> Size | None:
    """The simplest polynomial that is `numbers[n]` at `values[n]` for all n; None if there is none.

    Letters that are 1 everywhere (one query head a KV head) do not occur.
    """
    for size in _candidates(frozenset(name for name in values[0] if _varies(name, values))):
        if all(size.at(v) == number for v, number in zip(values, numbers, strict=True)):
            return size
    return None


def _varies(name: str, values: Sequence[Mapping[str, int]]) -> bool:
    return any(v[name] != 1 for v in values)


@cache
def _candidates(letters: frozenset[str]) -> tuple[Size, ...]:
    return tuple(_simplest_first(letters))


def _simplest_first(letters: frozenset[str]) -> Iterator[Size]:
    monomials = [m for m in _MONOMIALS if m.letters <= letters]
    yield ZERO
    for count in range(1, _MOST):
        yield from (count * monomial for monomial in monomials)
    for a, b in itertools.product(range(1, _MOST), repeat=2):
        for one, other in itertools.combinations(monomials, 2):
            yield a * one + b * other
