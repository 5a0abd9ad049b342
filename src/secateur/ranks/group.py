"""Ranks through torch.distributed: gloo between CPUs, NCCL between GPUs.

Every exchange begins with a header of three numbers from each rank: what it is about, how many
bytes it says, whether the rank has failed. So ranks that have parted find out at once.
"""

import json
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ..errors import SecateurError
from ..launched import Launched
from .alone import Ranks, joined_as

T = TypeVar("T")

# So long a rank waits for another one: for the rest of a layer, or while the first measures and
# writes. One that died has closed its connections, and whoever waits for it knows at once.
_PATIENCE = timedelta(hours=2)
# All have been started at once: whoever has not come by then does not.
_MEETING = timedelta(minutes=5)
# A rank that fails waits so long for others that fail likewise; one that lost another, so many
# seconds to hear from those that are left.
_FAILING, _ROLL_CALL = timedelta(seconds=10), 8.0
# Bytes that are summed in one exchange: a copy of them is made.
_AT_ONCE = 2**26


class Parted(Exception):  # noqa: N818 - what went wrong is another rank's
    """Others have failed, or are about something else: `failures` by rank, None where all is well.

    No SecateurError: what goes on after such an error (a contest) must not go on here.
    """

    def __init__(self, message: str, failures: Sequence[str | None]) -> None:
        super().__init__(message)
        self.failures = list(failures)


class Lost(Exception):  # noqa: N818
    """Another rank is not there any more."""


@dataclass(frozen=True)
class Group(Ranks):
    """The ranks that torchrun has started; `hosts` by rank.

    `by_gpu`: tensors on GPUs are exchanged there, each rank's on its own.
    """

    hosts: tuple[str, ...] = ()
    by_gpu: bool = False
    store: Any = None

    def name(self, index: int | None = None) -> str:
        """What a rank is called: by default this one."""
        index = self.index if index is None else index
        host = self.hosts[index] if self.hosts else ""
        return f"rank {index} of {self.count}" + (f" ({host})" if host else "")

    def summed(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See `Ranks`."""
        self._meet(f"sums of {what}: {[(str(t.dtype), list(t.shape)) for t in tensors]}")
        return [self._summed(tensor) for tensor in tensors]

    def _summed(self, tensor: Tensor) -> Tensor:
        # wherever it is: one that nobody has added to is still on the CPU
        own = tensor.detach().to("cuda" if self.by_gpu else "cpu").contiguous()
        with _connected():
            dist.all_reduce(own)
        return own.to(tensor.device)

    def add_up(self, what: str, tensors: Sequence[Tensor]) -> None:
        """See `Ranks`; tensors of one kind go together, some `_AT_ONCE` bytes of them."""
        self._meet(f"sums of {what}: {[(str(t.dtype), list(t.shape)) for t in tensors]}")
        for some in _bundles(tensors):
            total = self._summed(torch.cat([one.flatten() for one in some]))
            for one, own in zip(some, total.split([one.numel() for one in some]), strict=True):
                one.copy_(own.view_as(one))

    def gathered(self, what: str, rows: Tensor) -> Tensor:
        """See `Ranks`."""
        about = f"rows of {what}: {rows.dtype}, {list(rows.shape[1:])}"
        counts = self._meet(about, len(rows))
        padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows.detach().cpu()
        found = [torch.empty_like(padded) for _ in counts]
        with _connected():
            dist.all_gather(found, padded)
        return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])

    def each(self, what: str, value: T) -> list[T]:
        """See `Ranks`."""
        return self._meet(f"values of {what}", value)

    def told(self, what: str, make: Callable[[], T]) -> T:
        """See `Ranks`."""
        said: Any = None
        if self.first:
            try:
                said = {"value": make()}
            except SecateurError as error:
                said = {"error": str(error)}
        said, *_ = self._meet(f"told {what}", said)
        if "error" in said:
            raise SecateurError(said["error"])
        value: T = said["value"]
        return value

    def sent(self, what: str, make: Callable[[], Tensor]) -> Tensor:
        """See `Ranks`."""
        made: list[Tensor] = []

        def begin() -> list[Any]:
            made.append(make().detach().cpu().contiguous())
            return [str(made[0].dtype).removeprefix("torch."), list(made[0].shape)]

        dtype, shape = self.told(what, begin)
        own = made[0] if made else torch.empty(shape, dtype=getattr(torch, dtype))
        with _connected():
            dist.broadcast(own, 0)
        return own

    def linked(self) -> AbstractContextManager[None]:
        """See `Ranks`: by torch.distributed itself."""
        return _connected(_of_exchange)

    def failed(self, message: str) -> list[str | None] | None:
        """Tell the others that this rank has failed; the failures of all, by rank.

        None where the others do not come: they are busy, or gone.
        """
        try:
            self._meet("failed", message, failed=True, patience=_FAILING)
        except Parted as parted:
            return parted.failures
        except Lost:
            return None
        raise AssertionError("a rank that has failed parts all")

    def ends(self, how: str) -> None:
        """Say how this rank ends: whoever misses it knows by this that it was not killed."""
        with suppress(RuntimeError):  # the host that keeps the roll is gone
            self.store.set(f"end {self.index}", how)

    def roll_call(self, how: str) -> dict[int, str]:
        """How all ranks end that are still heard of, when this one does.

        Those that wait for this one wait no longer.
        """
        self.ends(how)
        with suppress(Exception):  # of a group that has broken
            dist.destroy_process_group()
        until = time.monotonic() + _ROLL_CALL
        found = {self.index: how}
        with suppress(RuntimeError):
            while len(found) < self.count and time.monotonic() < until:
                for index in set(range(self.count)) - set(found):
                    if self.store.check([f"end {index}"]):
                        found[index] = self.store.get(f"end {index}").decode()
                time.sleep(0.1)
        return found

    def _meet(
        self, what: str, said: Any = None, *, failed: bool = False, patience: timedelta = _PATIENCE
    ) -> list[Any]:
        """What each rank has to say, when all have come to the same.

        Raises:
            Parted: they have not, or one has failed.
            Lost: one is gone.
        """
        raw = b"" if said is None else json.dumps(said).encode()
        tag = zlib.crc32(what.encode())
        headers = self._all(torch.tensor([tag, len(raw), int(failed)]), patience)
        tags, sizes, failures = zip(*(header.tolist() for header in headers), strict=True)
        if any(failures) or len(set(tags)) > 1:
            self._part(what, said if failed else None)
        if not any(sizes):
            return [None] * self.count
        return [json.loads(one) if one else None for one in self._texts(raw, sizes)]

    def _part(self, what: str, failure: str | None) -> None:
        raw = json.dumps([what, failure]).encode()
        sizes = [int(size) for size in self._all(torch.tensor([len(raw)]), _FAILING)]
        places, failures = zip(*map(json.loads, self._texts(raw, sizes)), strict=True)
        at = "; ".join(f"{self.name(i)} is at: {place}" for i, place in enumerate(places))
        raise Parted(at, failures)

    def _texts(self, raw: bytes, sizes: Sequence[int]) -> list[bytes]:
        padded = torch.tensor(list(raw.ljust(max(sizes), b" ")), dtype=torch.uint8)
        texts = self._all(padded, _PATIENCE)
        return [bytes(text.tolist()[:size]) for text, size in zip(texts, sizes, strict=True)]

    def _all(self, own: Tensor, patience: timedelta) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.count)]
        with _connected():
            work = dist.all_gather(found, own, async_op=True)
            assert work is not None, "this rank is in the group"
            work.wait(patience)
        return found


def _bundles(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device together, in their order, up to so many bytes."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        some = kinds.setdefault((tensor.dtype, tensor.device), [])
        if some and sum(one.nbytes for one in some) + tensor.nbytes > _AT_ONCE:
            yield some
            kinds[tensor.dtype, tensor.device] = some = []
        some.append(tensor)
    yield from (some for some in kinds.values() if some)


def _of_exchange(error: RuntimeError) -> bool:
    """Whether what raised it was an exchange; gloo's errors are known by what they say alone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def _connected(lost: Callable[[RuntimeError], bool] = lambda _: True) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise where a connection is closed
        if not lost(error):
            raise
        with suppress(ValueError):  # torchrun ends those that are left: not in the midst of tidying
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Lost(str(error).split("\n")[0]) from error


@contextmanager
def _deadly() -> Iterator[None]:
    """While entered, a signal ends this process: Python's own answer waits for what waits here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, signal.SIG_DFL) for one in both}
    try:
        yield
    finally:
        for one, answer in before.items():
            signal.signal(one, answer)


@contextmanager
def joined(started: Launched) -> Iterator[Group]:
    """While entered, this process is one of those that torchrun has started.

    Raises:
        SecateurError: they do not find each other.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    by_gpu = started.here <= gpus
    if by_gpu:
        torch.cuda.set_device(started.local)
    backend = "cpu:gloo,cuda:nccl" if by_gpu else "gloo"
    try:
        with _deadly():
            store, index, count = next(iter(rendezvous("env://", timeout=_MEETING)))
            dist.init_process_group(
                backend, store=store, rank=index, world_size=count, timeout=_PATIENCE
            )
    except (RuntimeError, ValueError) as error:
        why = str(error).split("\n")[0]
        raise SecateurError(
            f"The {started.count} processes do not find each other: {why}.\n"
            "Type torchrun --standalone on one machine; on several, look at --rdzv-endpoint."
        ) from error
    roll = PrefixStore("secateur", store)
    group = Group(index, count, by_gpu=by_gpu, store=roll)
    hosts = tuple(group.each("hosts", socket.gethostname()))
    group = Group(index, count, hosts, by_gpu, roll)
    try:
        with joined_as(group):
            yield group
    finally:
        with suppress(Exception):  # of a group that has broken
            dist.destroy_process_group()
