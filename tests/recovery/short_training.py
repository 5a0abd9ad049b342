"""A training of a few steps on a tiny model, for tests."""

from typing import Any

import torch

from conftest import tiny_model
from secateur.data import Examples
from secateur.models import open_model
from secateur.recovery import Plain, Schedule, Trainer, narrowed, next_token

CPU = torch.device("cpu")


def schedule(**changes: Any) -> Schedule:
    given = {
        "steps": 12, "batch": 5, "micro": 2, "rate": 0.15, "relative": True, "warmup": 2, "seed": 3,
    }  # fmt: skip
    return Schedule(**{**given, **changes})


def trainer(
    objective: Any = next_token,
    *,
    variant: str = "llama-gqa",
    device: torch.device = CPU,
    autocast: torch.dtype | None = None,
    **changes: Any,
) -> tuple[Trainer, Plain]:
    model = tiny_model(variant)
    ids = torch.randint(3, 128, (23, 16), generator=torch.Generator().manual_seed(2))
    ids[:, 8:] = ids[:, :8]  # something to learn
    consumers = {a.consumer.tensor for a in open_model(model).structure.axes}
    model = model.to(device)
    plain = Plain(model, sorted(consumers))
    if autocast is not None:
        narrowed(model, autocast)
    options = {key: changes.pop(key) for key in ("store", "fingerprint") if key in changes}
    made = Trainer(
        model,
        plain.parameters,
        Examples.of_windows(ids),
        4,
        objective,
        schedule(**changes),
        device=device,
        autocast=autocast,
        **options,
    )
    return made, plain
