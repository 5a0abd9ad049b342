"""What two models write: the same prompts, gone on with by the likeliest token each time."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ..checkpoint import Store
from ..errors import SecateurError
from ..evaluation import continuations, end_tokens
from ..models import OpenModel, StreamedModel
from ..progress import note, timed
from ..report import Sample

PROMPTS = (
    "Once upon a time, there was a",
    "The capital of France is",
    "In the morning she opened the door and",
    "The most important thing about science is that",
)
# New tokens a prompt; and, of models of so many parameters, parameters times new tokens in all:
# some ten seconds of a CPU. Of larger ones nothing is written for this.
_NEW, _WORK = 32, 4e10


def samples(
    opened: OpenModel,
    sources: tuple[StreamedModel, StreamedModel],
    *,
    prompts: int,
    limit: int,
    store: Store | None,
    tokenizer: Any = None,
) -> tuple[Sample, ...]:
    """Prompts, and what the model that was opened and the one made of it (`sources`) write.

    Greedily; nothing where that would be work, or there is no tokenizer. `limit` bytes may be
    in memory, of hidden states or of all weights; what was written is kept in `store`.
    """
    elements = sum(spec.elements for spec in opened.weights.specs.values())
    count = min(prompts, len(PROMPTS), int(_WORK // max(2 * _NEW * elements, 1)))
    if count < 1 or opened.around is not None:
        return ()
    if tokenizer is None:
        with suppress(SecateurError):
            tokenizer = opened.tokenizer
    if tokenizer is None:
        return ()
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:count]]
    if max(map(len, ids)) >= opened.context or max(map(max, ids)) >= opened.config.vocab_size:
        return ()
    written = []
    try:
        with timed("samples of text"):
            for source in sources:
                with source.supply.staying(limit):  # every token is a walk over all layers
                    found = continuations(
                        source,
                        ids,
                        new_tokens=_NEW,
                        ends=end_tokens(opened.config, tokenizer),
                        context=opened.context,
                        limit=limit,
                        store=store,
                        stage="samples",
                    )
                written.append(list(map(partial(_text, tokenizer), ids, found)))
    except Exception as error:  # whatever it is, the rest of the report is worth more
        note(f"no text was written for the report: {type(error).__name__}")
        return ()
    pairs = zip(PROMPTS, *written, strict=False)
    return tuple(Sample(prompt=prompt, before=a, after=b) for prompt, a, b in pairs)


def _text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """What follows, as it reads after the prompt: its first space belongs to it."""
    before, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, [*prompt, *new])
    )
    return whole[len(before) :]
