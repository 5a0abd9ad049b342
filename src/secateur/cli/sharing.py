"""One command in several processes, which torchrun has started: who speaks, and how it ends."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from ..errors import SecateurError
from ..launched import launched
from .screen import hush, say

if TYPE_CHECKING:
    from ..ranks.group import Group

ASKS_HELP = ("-h", "--help", "--help-all")
# Those that share their work; all others do it in one process.
_SHARED = ("prune", "apply", "recover")
# How a rank ends: it has said why, or was interrupted by a signal or by the end of another.
_SAID, _INTERRUPTED = "said", "interrupted"
# Seconds that the first rank has to say what all would.
_FIRST_SPEAKS = 3.0
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def sharing(words: Sequence[str]) -> Iterator[None]:
    """While entered, this process is one of those that share the command; alone, it does nothing.

    Raises:
        SecateurError: the command is for one process; or a rank has failed, and one of them says
            which.
    """
    started = launched()
    helps = not words or words[0].startswith("-") or any(word in ASKS_HELP for word in words)
    if started.count == 1 or helps:
        yield
        return
    if words[0] not in _SHARED:
        if started.index:  # torchrun ends the others as soon as one has ended: the first speaks
            time.sleep(_FIRST_SPEAKS)
        check_shared(words[0], False)
    from ..ranks.group import joined

    with joined(started) as group:
        try:
            yield
        except BaseException as error:
            ending = _ending(group, error)
            if ending is error:
                raise
            raise ending from (ending.__cause__ or error)


def check_shared(command: str, shared: bool) -> None:
    """Make sure that a command which several processes were started for can be shared by them.

    Raises:
        SecateurError: it cannot.
    """
    count = launched().count
    if count > 1 and not shared:
        raise SecateurError(
            f"{command} runs in one process, and torchrun started {count}.\n"
            f"Type: secateur {command} ... (prune, apply and recover alone share their work)"
        )


def _ending(group: "Group", error: BaseException) -> BaseException:
    """What is left to say of an error by this rank; it is hushed if another one says it."""
    from ..ranks.group import Lost, Parted

    with suppress(ValueError):  # not the main thread
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)  # torchrun ends those that are left
    if isinstance(error, Parted) and any(error.failures):
        group.ends(_SAID)
        hush()
        return SecateurError(error)
    if isinstance(error, Lost | KeyboardInterrupt | click.Abort):
        return _interrupted(group, error)
    if isinstance(error, Parted):
        group.ends(_SAID)
        hush(group.index > 0)
        return SecateurError(
            f"The processes do not do the same: {error}.\n"
            "Give each the same model, text and version; code of your own must draw by the seed."
        )
    failures = group.failed(str(error) or type(error).__name__)
    group.ends(_SAID)
    if failures is not None and len(set(failures)) == 1:  # all say the same: one says it
        hush(group.index > 0)
        return error
    hush(False)
    if isinstance(error, SecateurError | click.UsageError):
        text = error.format_message() if isinstance(error, click.UsageError) else str(error)
        return SecateurError(f"{group.name()}: {text}")
    say(f"{group.name()} fails:", error=True)
    return error


def _interrupted(group: "Group", error: BaseException) -> BaseException:
    """What is said where ranks were killed, or all were interrupted: by one of those left."""
    ends = group.roll_call(_INTERRUPTED)
    missing = [index for index in range(group.count) if index not in ends]
    hush(group.index != min(ends) or _SAID in ends.values())
    kept = str(error.__cause__ or "") if isinstance(error, click.Abort) else ""
    if not missing and isinstance(error, KeyboardInterrupt | click.Abort):
        return error
    if not missing:
        others = click.Abort()
        others.__cause__ = KeyboardInterrupt("all processes end")
        return others
    names = " and ".join(map(group.name, missing))
    more = f"\n{kept[:1].upper()}{kept[1:]}." if kept else ""
    return SecateurError(
        f"{names} {'are' if len(missing) > 1 else 'is'} gone: killed, or out of memory.{more}"
    )
