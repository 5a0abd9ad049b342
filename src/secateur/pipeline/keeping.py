"""Where a run keeps its passes: in a store that was named, or beside --out till it is done."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path

from ..arguments import of_kind
from ..checkpoint import GIB, Store, real_path, store_folder
from ..errors import ArgumentError, SecateurError
from ..paths import resolved, typed_path
from ..progress import note
from ..ranks import this

# Seconds of passes that are not to be lost.
WORTH = 5.0

Stored = Store | str | Path | None


@contextmanager
def keeping(
    store: Stored, folder: Path | None, out: str | Path | None, *, fresh: bool = False
) -> Iterator[Store | None]:
    """The store of a run that writes `folder`, which becomes `out`; None if it has neither.

    One beside `out` goes when the result is whole, or when the run fails before its passes took
    any time to speak of.

    Of several ranks the first keeps; the others, which have no `folder`, look into its store.

    Raises:
        SecateurError: the store that was named cannot be one.
    """
    ranks = this()
    own = _keeping(store, folder, out, fresh=fresh)
    with own if ranks.first else nullcontext() as kept:
        place = ranks.told("store", lambda: None if kept is None else str(kept.folder))
        if kept is None and place is not None:
            kept = Store(Path(place))
        yield kept


@contextmanager
def _keeping(
    store: Stored, folder: Path | None, out: str | Path | None, *, fresh: bool
) -> Iterator[Store | None]:
    if isinstance(store, Store):
        if fresh:
            raise SecateurError("fresh=True goes with a folder; here: Store(folder, fresh=True).")
        yield store
    elif store is not None:
        with _named(store, out, fresh) as named:
            yield named
    elif folder is None or out is None:
        yield None
    else:
        place = store_folder(folder.parent, real_path(Path(out)))
        with _beside(place, fresh) as beside:
            yield beside


@contextmanager
def _beside(place: Path, fresh: bool) -> Iterator[Store]:
    store, earlier = Store(place, gib=math.inf, fresh=fresh), place.exists()
    try:
        with store:
            yield store
    except BaseException as error:
        if not earlier and store.seconds < WORTH:
            store.clean()
            raise
        kept = f"what was found so far is in {place.name} beside --out: type the same command to"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{kept} go on") from error
        note(f"{kept} go on, or another one with the same --out")
        raise


def _named(store: str | Path, out: str | Path | None, fresh: bool) -> Store:
    if not isinstance(store, str | PathLike):
        raise ArgumentError(f"store must be a folder or a Store, not {of_kind(store)}.")
    place = typed_path(store, "--store")
    there = resolved(place)
    if out is not None:
        target = real_path(Path(out))
        if there == store_folder(target.parent, target):
            raise SecateurError(
                f"--store {store} is where a run keeps its own beside --out.\nChoose another."
            )
    if out is not None and real_path(Path(out)) in (there, *there.parents):
        raise SecateurError(f"--store {store} lies in --out. Choose another --store.")
    try:
        there.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SecateurError(
            f"Cannot keep passes in {store}: {error.strerror}. Choose another --store."
        ) from error
    return Store(there, gib=GIB, fresh=fresh)
