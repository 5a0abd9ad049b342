"""What two models write: the same prompts, gone on with by the likeliest token each time."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from ..errors import SecateurError
from ..export import Form
from ..models import OpenModel, StreamedModel, filled
from ..progress import note, timed, track
from ..report import Sample

PROMPTS = (
    "Once upon a time, there was a",
    "The capital of France is",
    "In the morning she opened the door and",
    "The most important thing about science is that",
)
# New tokens a prompt; and, of models of so many parameters, parameters times new tokens in all:
# some ten seconds of a CPU. Larger models, in time or in bytes, are not loaded whole for this.
_NEW, _WORK, _LARGEST = 32, 4e10, 2**30


def samples(
    opened: OpenModel, after: Form, like: StreamedModel, prompts: int, tokenizer: Any = None
) -> tuple[Sample, ...]:
    """Prompts, and what the model that was opened and the one `after` it write.

    None where that would be work, or there is no tokenizer. One model is in memory at a time, in
    the dtype and on the device of `like`.
    """
    elements = sum(spec.elements for spec in opened.weights.specs.values())
    count = min(prompts, len(PROMPTS), int(_WORK // max(2 * _NEW * elements, 1)))
    if count < 1 or elements * like.dtype.itemsize > _LARGEST or opened.around is not None:
        return ()
    if tokenizer is None:
        with suppress(SecateurError):
            tokenizer = opened.tokenizer
    if tokenizer is None:
        return ()
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:count]]
    room = opened.context - max(map(len, ids))
    if room < 1 or max(map(max, ids)) >= opened.config.vocab_size:
        return ()
    new = min(_NEW, room)

    def models() -> Iterator[Any]:
        yield opened.whole(like.dtype)
        yield filled(after.empty(like.dtype), after.weights, like.dtype)

    written = []
    try:
        with timed("samples of text"):
            for model in models():
                model.to(like.device)
                rows = track(ids, "samples", len(ids), "prompt")
                written.append([_text(tokenizer, row, _going_on(model, row, new)) for row in rows])
                del model
    except Exception as error:  # out of memory, say: the rest of the report is worth more
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


def _going_on(model: Any, ids: Sequence[int], new: int) -> list[int]:
    """The tokens that follow, until the end of the text."""
    ends = getattr(model.config, "eos_token_id", None)
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with torch.inference_mode():
        for _ in range(new):
            likeliest = model(input_ids=row).logits[:, -1:].argmax(dim=-1)
            row = torch.cat([row, likeliest], dim=1)
            if int(likeliest) in ends:
                break
    return [int(one) for one in row[0, len(ids) :]]
