"""Texts in an order that the seed decides, with a bounded part of them in memory."""

import random
from collections.abc import Iterable, Iterator

# So many characters of text wait to be drawn: all of a small source, some of a large one.
BUFFER = 2**23


def shuffled(texts: Iterable[str], seed: int | None) -> Iterator[str]:
    """`texts` in an order that `seed` decides (None: their own).

    Where all fit into the buffer it is a permutation of them; of more, each text that is read
    takes the place of one that is drawn, as in a shuffled stream of `datasets`.
    """
    if seed is None:
        yield from texts
        return
    chance = random.Random(seed)
    waiting: list[str] = []
    size = 0
    for text in texts:
        if size < BUFFER:
            waiting.append(text)
            size += len(text)
            if size >= BUFFER:
                chance.shuffle(waiting)
            continue
        place = chance.randrange(len(waiting))
        yield waiting[place]
        waiting[place] = text
    if size < BUFFER:
        chance.shuffle(waiting)
    yield from waiting
