"""Held-out text, and the perplexities that models have on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import Text, token_hash
from ..evaluation import Perplexity, window_lengths
from ..export import Form
from ..models import OpenModel, StreamedModel
from ..progress import Progress
from . import stages


@dataclass(frozen=True)
class HeldOut:
    """Text that nothing was fitted to; `name` says what it is, `context` the model's."""

    text: Text
    name: str
    context: int

    @property
    def lengths(self) -> list[int]:
        """The usual window lengths that the text is long enough for."""
        return [n for n in window_lengths(self.context) if len(self.text.windows(n))]

    def to_json(self) -> dict[str, Any]:
        """Which text it is, for records."""
        return {"text": self.name, "sha256": token_hash(self.text.ids)}

    def perplexities(
        self, source: StreamedModel, batch: int, progress: Progress, when: str, *, limit: int
    ) -> list[Perplexity]:
        """One value a window length; `when` is for the progress bar, `limit` bytes of states."""
        stage = f"perplexity {when}"
        return stages.perplexities(
            source, self.text, self.lengths, batch, progress, stage, limit=limit
        )


def streamed(
    form: Form, opened: OpenModel, dtype: torch.dtype, device: torch.device
) -> StreamedModel:
    """What is to be written, for the streaming pass: weights are made when they are asked for."""
    return StreamedModel(form.empty(dtype), opened.family, form.weights, device)


def compared(before: Sequence[Perplexity], after: Sequence[Perplexity]) -> list[dict[str, Any]]:
    """A row for each window length, as records and cards have it."""
    return [
        {"window": one.window, "tokens": one.tokens, "before": one.value, "after": other.value}
        for one, other in zip(before, after, strict=True)
    ]
