"""What stops a training in its midst, here and in processes of their own."""

from collections.abc import Iterator
from typing import Any

from secateur.progress import Quiet


class Cut(Quiet):
    """Breaks training off before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def track(self, items: Any, stage: str, total: int, unit: str) -> Iterator[Any]:
        """Give the items up to that step."""
        for item in items:
            if stage == "training" and item == self.step:
                raise KeyboardInterrupt
            yield item
