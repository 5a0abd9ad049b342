"""What torchrun says of the processes that it has started; read without importing anything."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launched:
    """Process `index` of `count`; on this host it is `local` of `here`."""

    index: int = 0
    count: int = 1
    local: int = 0
    here: int = 1


def launched(environment: Mapping[str, str] | None = None) -> Launched:
    """How this process was started: one alone where nobody says that there are more."""
    said = os.environ if environment is None else environment
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(said.get(name) for name in NEEDED):
        return Launched()
    if not all(said.get(name, "0").isdecimal() for name in numbers):
        return Launched()
    index, count = int(said["RANK"]), int(said["WORLD_SIZE"])
    if count < 2 or index >= count:
        return Launched()
    local = int(said.get("LOCAL_RANK", index))
    return Launched(index, count, local, int(said.get("LOCAL_WORLD_SIZE", count)))
