"""Shares of a sweep on a cluster of Ray: one for each GPU, or for so many cores.

Ray is the extra `ray`, and this module is imported when it is asked for. What a share gives comes
back as it is made, so that machines need not share a disk for it; models, texts and the store of
passes have to be where the settings say on each of them.
"""

import json
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..errors import SecateurError
from .carriers import DiedError
from .sweep_share import Event, Share, make_share


class OnRay:
    """Ray's workers; a cluster is that of RAY_ADDRESS, the one on this machine, or a new one."""

    def __init__(self, workers: int | None, *, gpu: bool) -> None:
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        try:
            if self._ours:
                ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            room = ray.cluster_resources()
        except Exception as error:  # Ray has a dozen kinds
            raise SecateurError(
                f"Ray does not start: {(str(error).splitlines() or [''])[0]}\n"
                "Leave --on away, or set RAY_ADDRESS to a cluster that runs."
            ) from error
        gpus, cpus = int(room.get("GPU", 0)), int(room.get("CPU", 1))
        on_gpus = gpu and gpus > 0
        self.workers = workers or max(1, gpus if on_gpus else cpus)
        self._made = ray.remote(_made).options(
            num_returns="streaming",
            num_cpus=max(1, cpus // self.workers),
            num_gpus=int(on_gpus),
            max_retries=0,
        )
        self._running: list[Any] = []

    def events(self, share: Share) -> Iterator[Event]:
        """What happens, as it does.

        Raises:
            DiedError: the worker, or the machine that it was on, is gone.
        """
        answers = self._made.remote(share.to_json())
        self._running.append(answers)
        try:
            for answer in answers:
                yield json.loads(self._ray.get(answer))
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [
                "Ray says why not"
            ]
            raise DiedError(f"{type(error).__name__}: {lines[-1].strip()[:300]}") from error
        finally:
            self._running.remove(answers)

    def close(self) -> None:
        """End what is still under way."""
        for answers in list(self._running):
            with suppress(Exception):
                self._ray.cancel(answers, force=True)
        if self._ours:
            self._ray.shutdown()


def _made(raw: Mapping[str, Any]) -> Iterator[str]:
    """Make a share, and give each event as JSON when it happens."""
    told: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

    def make() -> None:
        try:
            make_share(Share.of(raw), told.put)
        except BaseException as error:
            told.put(error)

    threading.Thread(target=make, daemon=True).start()
    while True:
        event = told.get()
        if isinstance(event, BaseException):
            raise RuntimeError(f"{type(event).__name__}: {event}") from event
        yield json.dumps(event)
        if "ended" in event:
            return
