"""Held-out text, and the perplexities that models have on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import data, evaluation
from ..checkpoint import Store, digest
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..export import Form
from ..models import OpenModel, StreamedModel
from ..stats.activations import MEMORY_LIMIT
from .calibration import DEFAULT_LENGTH
from .checks import known_ids

# Of the calibration text, at most so many tokens that no window was cut from are measured on.
SPARE_TOKENS = 16384


@dataclass(frozen=True)
class HeldOut:
    """Text that nothing was fitted to: all of `source`, or a part of it.

    `name` says what it is, `context` the model's.
    """

    text: data.Text
    name: str
    source: str
    context: int

    @property
    def lengths(self) -> list[int]:
        """The usual window lengths that the text is long enough for."""
        return [n for n in window_lengths(self.context) if len(self.text.windows(n))]

    def to_json(self) -> dict[str, Any]:
        """Which text it is, for records."""
        return {"text": self.name, "source": self.source, "sha256": data.token_hash(self.text.ids)}

    def perplexities(
        self, source: StreamedModel, batch: int, when: str, *, limit: int, store: Store | None
    ) -> list[Perplexity]:
        """One value a window length; `when` is for the progress bar, `limit` bytes of states."""
        stage = f"perplexity {when}".strip()
        return perplexities(source, self.text, self.lengths, batch, stage, limit=limit, store=store)


def evaluation_text(
    opened: OpenModel,
    source: str,
    *,
    tokenizer: Any = None,
    tokens: int | None = None,
    window: int = 2,
    field: str | None = None,
    bos: str = "auto",
    given: Any = None,
) -> data.Text:
    """The text that perplexity is taken on, as running token ids [token].

    `given` is text in the place of the one that `source` names; tokens [window, token] come one
    window after the other.

    Raises:
        SecateurError: no such text, not one `window` of it, or the tokenizer is another model's.
    """
    if (ready := data.given_windows(given)) is not None:
        return data.Text(known_ids(ready.flatten()[:tokens], opened), data.Beginning("given"))
    tokenizer = tokenizer or opened.tokenizer
    documents = data.documents(
        source if given is None else given,
        use="evaluation",
        seed=None,
        field=field,
        tokenizer=tokenizer,
    )
    text = data.running_text(documents, tokenizer, source=source, at_most=tokens, bos=bos)
    if not len(text.windows(window)):
        raise SecateurError(
            f"The text of {source} has {len(text.ids)} tokens, fewer than one window of {window}.\n"
            "Give more text, or --evaluate none."
        )
    known_ids(text.ids, opened)
    return text


def perplexities(
    source: StreamedModel,
    text: data.Text,
    lengths: Sequence[int],
    batch: int,
    stage: str,
    *,
    limit: int = MEMORY_LIMIT,
    store: Store | None = None,
) -> list[Perplexity]:
    """One value a window length; batches of long windows are smaller, so that memory stays even.

    One walk serves all lengths.
    """
    return evaluation.perplexities(
        source,
        [text.windows(length) for length in lengths],
        [max(1, batch * DEFAULT_LENGTH // length) for length in lengths],
        limit=limit,
        begin=text.begin.window,
        store=store,
        stage=stage,
    )


def streamed(form: Form, opened: OpenModel, like: StreamedModel, *made_by: str) -> StreamedModel:
    """What is to be written, for the streaming pass: weights are made when they are asked for.

    It computes as another model does, beside it; `made_by` says all that the form was made of
    `opened` by.
    """
    return StreamedModel(
        form.empty(like.dtype),
        opened.family,
        form.weights,
        like.device,
        lambda: digest([opened.identity, *made_by]),
        f"{opened.name}, changed",
        resident=like.resident,
        room=like.room,
    )


def compared(before: Sequence[Perplexity], after: Sequence[Perplexity]) -> list[dict[str, Any]]:
    """A row for each window length, as records and cards have it."""
    return [
        {"window": one.window, "tokens": one.tokens, "before": one.value, "after": other.value}
        for one, other in zip(before, after, strict=True)
    ]
