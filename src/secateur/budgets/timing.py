"""How long works take on this machine, and a token of a whole model."""

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .table import Attention, Work

# Weights that are timed again lie in a processor's cache, which those of a model do not: so many
# bytes of them are taken in turns.
_COLD = 256 * 2**20
_MOST_COPIES = 256
# Seconds that a work is run for, and runs at least.
_SECONDS, _RUNS = 0.2, 5
# Tokens that a cache is read for before it is made anew, and rounds of a comparison.
TOKENS, ROUNDS = 6, 5


def work_seconds(work: Work, device: torch.device, dtype: torch.dtype) -> float:
    """The median seconds that `work` takes on a device, with weights that no cache holds."""
    size = sum(out * into for out, into in work.linears)
    if work.attention is not None:
        size += 2 * work.batch * work.attention.groups * _values(work.attention)
    copies = min(max(_COLD // max(size * dtype.itemsize, 1), 1), _MOST_COPIES)
    first = [torch.randn(shape, device=device).to(dtype) / 8 for shape in work.linears]
    weights = [first, *([w.clone() for w in first] for _ in range(copies - 1))]
    inputs = [torch.randn(work.batch, into, device=device).to(dtype) for _, into in work.linears]
    attend: Sequence[Callable[[], object]] = ()
    if work.attention is not None:
        attend = [_attention(work.attention, work.batch, device, dtype) for _ in range(copies)]

    def once() -> None:
        for copy, own in enumerate(weights):
            for value, weight in zip(inputs, own, strict=True):
                nn.functional.linear(value, weight)
            if attend:
                attend[copy]()

    with torch.inference_mode():
        return _median(once, device) / copies


def _values(attention: Attention) -> int:
    return attention.tokens * attention.head_dim


def _attention(
    asked: Attention, batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """A token's attention: the cache grows by it, then it is read."""

    def drawn(heads: int, tokens: int) -> Tensor:
        return torch.randn(batch, heads, tokens, asked.head_dim, device=device).to(dtype)

    query, new = drawn(asked.queries, 1), drawn(asked.groups, 1)
    keys, values = (drawn(asked.groups, max(asked.tokens - 1, 0)) for _ in range(2))

    def once() -> object:
        seen, read = torch.cat([keys, new], dim=2), torch.cat([values, new], dim=2)
        grouped = asked.queries != asked.groups
        attend = nn.functional.scaled_dot_product_attention
        return attend(query, seen, read, enable_gqa=grouped)

    return once


def _median(once: Callable[[], None], device: torch.device) -> float:
    """Median seconds of runs, after one that counts for nothing."""
    _elapsed(once, device)
    found: list[float] = []
    while len(found) < _RUNS or sum(found) < _SECONDS:
        found.append(_elapsed(once, device))
    return statistics.median(found)


def _elapsed(once: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    once()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def token_seconds(models: Sequence[Any], context: int, batch: int) -> list[float]:
    """The median seconds of a token of decoding of each of `models` (transformers causal LMs).

    They take turns, so that whatever else the machine does is shared.
    """
    found: list[list[float]] = [[] for _ in models]
    for number in range(ROUNDS + 1):
        for times, model in zip(found, models, strict=True):
            token = decoding(model, context, batch)
            own = [token() for _ in range(min(TOKENS, context))]
            if number:  # in the first round code is warmed
                times += own
    return [statistics.median(times) for times in found]


def decoding(model: Any, context: int, batch: int) -> Callable[[], float]:
    """Gives the seconds of one more token of each of `batch` sequences, whenever it is called.

    The cache holds random keys and values of `context` tokens, less the few that are decoded before
    it is made anew.
    """
    kept: list[Any] = []
    number = 0

    def token() -> float:
        nonlocal number
        with torch.inference_mode():
            if number % min(TOKENS, context) == 0:
                kept[:] = [filled_cache(model, max(context - TOKENS, 0), batch)]
            number += 1
            return _elapsed(partial(_token, model, kept[0], batch), model.device)

    return token


def prompting(model: Any, context: int, batch: int) -> Callable[[], float]:
    """Gives the seconds from a prompt of `context` tokens to the logits of the token after it."""
    from transformers import DynamicCache

    ids = torch.full((batch, context), 1, device=model.device)
    takes = inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def once() -> object:
        cache = DynamicCache(config=model.config)
        return model(input_ids=ids, past_key_values=cache, use_cache=True, **last).logits

    def prompt() -> float:
        with torch.inference_mode():
            return _elapsed(once, model.device)

    return prompt


def filled_cache(model: Any, tokens: int, batch: int) -> Any:
    """A cache of `model` with random keys and values of so many tokens, in the model's own shapes.

    What layers keep otherwise (states) is as after one token.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    if tokens == 0:
        return cache
    _token(model, cache, batch)
    for index, layer in enumerate(cache.layers):
        if tokens > 1 and getattr(layer, "keys", None) is not None:
            drawn = (
                torch.randn(*(*one.shape[:2], tokens - 1, one.shape[3]), device=one.device)
                for one in (layer.keys, layer.values)
            )
            cache.update(*(one.to(layer.keys.dtype) for one in drawn), index)
    return cache


def _token(model: Any, cache: Any, batch: int) -> Tensor:
    ids = torch.full((batch, 1), 1, device=model.device)
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits
