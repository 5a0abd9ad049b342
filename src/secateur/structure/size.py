"""Sizes that are not known yet: polynomials in the letters of a model's layout.

| letter | meaning |
|---|---|
| `K` | KV heads |
| `r` | query heads a KV head |
| `d` | width of one head |
| `I` | MLP channels (of one expert, in a mixture) |
| `E` | experts |
| `D` | hidden width |

A layout written with letters (`offset = K*r*d`) holds for every model of a family, and two layouts
are the same if and only if their polynomials are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Monomial = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """A polynomial with integer coefficients: `terms` are (letters, coefficient), sorted."""

    terms: tuple[tuple[Monomial, int], ...]

    @classmethod
    def of(cls, value: "Size | int") -> "Size":
        """`value` as a polynomial."""
        return value if isinstance(value, Size) else _collected({(): value})

    def __add__(self, other: "Size | int") -> "Size":
        terms = dict(self.terms)
        for letters, count in Size.of(other).terms:
            terms[letters] = terms.get(letters, 0) + count
        return _collected(terms)

    def __mul__(self, other: "Size | int") -> "Size":
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in Size.of(other).terms:
                letters = tuple(sorted(left + right))
                terms[letters] = terms.get(letters, 0) + a * b
        return _collected(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    def at(self, values: Mapping[str, int]) -> int:
        """The number that the polynomial is where the letters have `values`."""
        total = 0
        for letters, count in self.terms:
            for letter in letters:
                count *= values[letter]
            total += count
        return total

    @property
    def letters(self) -> frozenset[str]:
        """The letters that occur."""
        return frozenset(letter for letters, _ in self.terms for letter in letters)

    def __str__(self) -> str:
        parts = ["*".join([*[str(n)] * (n != 1 or not m), *m]) for m, n in self.terms]
        return " + ".join(parts) or "0"


def _collected(terms: Mapping[Monomial, int]) -> Size:
    return Size(tuple(sorted((letters, count) for letters, count in terms.items() if count)))


def letter(name: str) -> Size:
    """The polynomial that is one letter."""
    return Size((((name,), 1),))


K, r, d, I, E, D = (letter(name) for name in ("K", "r", "d", "I", "E", "D"))  # noqa: E741
ZERO, ONE = Size.of(0), Size.of(1)
