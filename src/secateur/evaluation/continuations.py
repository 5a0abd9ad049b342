"""What a model writes after a prompt: greedily, one token after the other, layers streamed.

Each new token is one walk over the layers for all prompts, so a model that does not fit in memory
writes too. Nothing is kept from token to token: that would be keys and values of every layer.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..checkpoint import Kept, Store
from ..progress import telling, track
from ..stats import LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from .states import last_states


def continuations(
    source: LayerSource,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    ends: Collection[int] = (),
    context: int,
    limit: int = MEMORY_LIMIT,
    store: Store | None = None,
    stage: str = "continuations",
) -> list[list[int]]:
    """Token ids that follow each prompt, the likeliest at every step; none after one of `ends`.

    At most `new_tokens`, and no more than the model reads at once (`context`) with the prompt.
    `limit` bytes of hidden states may be in memory; what was found is kept in `store`.

    Raises:
        SecateurError: an activation is not finite.
    """
    asked = {"lengths": [*map(len, prompts)], "new": new_tokens, "ends": sorted(ends)}
    walk = Walk(source, _padded(prompts), batch=len(prompts), store=store)
    kept = walk.kept("continuations", context=context, **asked)
    if not kept.whole:
        kept.end(value=_written(source, prompts, new_tokens, ends, context, limit, stage))
    found: list[list[int]] = kept.ended[1]
    return found


def _written(
    source: LayerSource,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    ends: Collection[int],
    context: int,
    limit: int,
    stage: str,
) -> list[list[int]]:
    texts = [list(prompt) for prompt in prompts]
    open_texts = list(range(len(texts)))
    for _ in track(range(new_tokens), stage, new_tokens, "token"):
        open_texts = [n for n in open_texts if len(texts[n]) < context]
        if not open_texts:
            break
        with telling():  # a walk is one step here, no stage
            following = _next(source, [texts[n] for n in open_texts], limit)
        for number, token in zip(open_texts, following, strict=True):
            texts[number].append(token)
        open_texts = [n for n in open_texts if texts[n][-1] not in ends]
    written = (text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True))
    return [text[:-1] if text and text[-1] in ends else text for text in written]


def end_tokens(config: Any, tokenizer: Any) -> set[int]:
    """What ends a text, by the tokenizer and by the config of a model."""
    ends = getattr(config, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def _next(source: LayerSource, texts: Sequence[Sequence[int]], limit: int) -> list[int]:
    """The likeliest token after each text."""
    walk = Walk(source, _padded(texts), batch=len(texts), limit=limit)
    (states,) = last_states([walk], [Kept()], "token")
    last = torch.tensor([len(text) - 1 for text in texts])
    hidden = states.tensor[torch.arange(len(texts)), last]
    with source.back() as logits_of:
        return [int(one) for one in logits_of(hidden[None])[0].argmax(dim=-1)]


def _padded(texts: Sequence[Sequence[int]]) -> Int64[Tensor, "text token"]:
    """Shorter ones are padded where nothing looks back."""
    longest = max(map(len, texts))
    return torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
