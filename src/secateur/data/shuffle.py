"""Texts in an order that the seed decides, with a bounded part of them in memory."""

import random
from collections.abc import Iterable, Iterator

# So many characters of text wait to be drawn: all of a small source, some of a large one.
BUFFER = 2**23


def shuffled(texts: Iterable[str], seed: int | None) -> Iterator[str]:
    """`texts` in an order that `seed` decides (None: their own).

    Where all fit into the buffer it is a permutation of them; of more, each text that is read
    takes the place of one that is drawn, as in a shuffled stream of `datasets`. Where long texts
    follow short ones, more are drawn than read, so that what waits does not grow with them.
    """
    if seed is None:
        yield from texts
        return
    chance = random.Random(seed)
    waiting: list[str] = []
    size = 0
    full = False
    for text in texts:
        if not full:
            waiting.append(text)
            size += len(text)
            full = size >= BUFFER
            if full:
                chance.shuffle(waiting)
            continue
        place = chance.randrange(len(waiting))
        drawn, waiting[place] = waiting[place], text
        size += len(text) - len(drawn)
        yield drawn
        while size > 2 * BUFFER and len(waiting) > 1:
            drawn = waiting.pop(chance.randrange(len(waiting)))
            size -= len(drawn)
            yield drawn
    if not full:
        chance.shuffle(waiting)
    yield from waiting
