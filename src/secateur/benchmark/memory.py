"""What a model takes of memory: its weights in a dtype, its KV cache at a context and a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..budgets import Cache
from ..checkpoint import TensorSpec
from ..structure import Plan

DTYPES = (torch.float32, torch.bfloat16)


def weight_bytes(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Bytes of all tensors, as they are stored and by dtype."""
    values = sum(spec.elements for spec in specs.values())
    found = {str(dtype).removeprefix("torch."): values * dtype.itemsize for dtype in DTYPES}
    return {"stored": sum(spec.bytes for spec in specs.values()), **found}


def cache_bytes(cache: Cache, contexts: Sequence[int], batches: Sequence[int]) -> list[int]:
    """Bytes of the cache at each context and batch size, contexts in the inner loop."""
    whole = Plan({}, "", "")
    return [
        replace(cache, context=context, batch=batch).bytes(whole, cache.structure)
        for batch in batches
        for context in contexts
    ]
