"""`self`: calibration text that the model writes itself, for want of any other."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import SecateurError


def generated_documents(model: Any, *, length: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Token ids that `model` samples from nothing, without end: one document a sequence.

    Plain sampling (temperature 1, no cut-off) from the beginning-of-text token; a document ends
    where the model ends it, or after `length` tokens.

    Raises:
        SecateurError: the model has no beginning-of-text token.
    """
    config = model.generation_config
    ends = torch.tensor(config.eos_token_id if config.eos_token_id is not None else []).view(-1)
    start = (
        config.bos_token_id if config.bos_token_id is not None else next(iter(ends.tolist()), None)
    )
    if start is None:
        raise SecateurError(
            "The model names no bos_token_id to begin a text of its own with ('self').\n"
            "Give a text in the place of 'self': a .txt or .jsonl file."
        )
    prompt = torch.full((batch, 1), start, device=model.device)
    for round_ in itertools.count():
        with torch.random.fork_rng():
            torch.manual_seed(seed + round_)
            rows = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length - 1,
                pad_token_id=start,
            )
        for row in rows.cpu():
            ended = torch.isin(row[1:], ends).nonzero()
            yield row[: int(ended[0]) + 2] if len(ended) else row
