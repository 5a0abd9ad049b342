"""The rounds of a search that asks much: how many there is time for, and what they come to.

    for number in rounds.of(asks):     # asks: of each round, how many candidates on how many tokens
        ...
        rounds.found(divergence)       # of the best so far

The first round is always made. With `minutes` a round begins if there is time for it, going by what
a candidate's token took in the slowest round before. How many were made is `done`, and a search of
so many rounds (`most`) does the same again, whatever the clock says.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

# Rounds by number, to be shown as they go.
Shown = Callable[[Sequence[int]], Iterable[int]]


@dataclass
class Rounds:
    """At most `most` rounds (None: all), and those alone that `minutes` have time for.

    `tokens` are all that candidates can be asked on. Times are seconds of `clock`; `shown` shows
    the rounds as they go, and `tell` gets a line of how it stands.
    """

    minutes: float | None = None
    most: int | None = None
    tokens: int = 1
    clock: Callable[[], float] = time.monotonic
    shown: Shown = iter
    tell: Callable[[str], object] = str
    done: int = 0
    all: int = 0
    divergence: float | None = None

    def of(self, asks: Sequence[tuple[int, int | None]]) -> Iterator[int]:
        """The numbers of the rounds that are made.

        `asks` are, of each, its candidates and the tokens of each of them (None: all). Where the
        search is run again for another budget, it makes as many rounds as before.
        """
        began, slowest = self.clock(), 0.0
        limit = self.done or self.most or len(asks)
        minutes = None if self.done else self.minutes
        sizes = [count * min(tokens or self.tokens, self.tokens) for count, tokens in asks]
        made = 0
        for number in self.shown(range(min(limit, len(asks)))):
            spent = self.clock() - began
            if minutes is not None and made and spent + slowest * sizes[number] > 60 * minutes:
                break
            started = self.clock()
            yield number
            made += 1
            slowest = max(slowest, (self.clock() - started) / max(sizes[number], 1))
            self._stands(minutes, self.clock() - began)
        self.done, self.all = made, len(asks)

    def found(self, divergence: float) -> None:
        """The divergence of the best so far, on the tokens of this round."""
        self.divergence = divergence

    def _stands(self, minutes: float | None, spent: float) -> None:
        best = "" if self.divergence is None else f"KL {self.divergence:.3g}"
        left = "" if minutes is None else f"{max(minutes - spent / 60, 0):.1f} minutes left at most"
        self.tell(", ".join(filter(None, (best, left))))
