"""A training of a few steps on a tiny model, for tests."""

from typing import Any

import torch

from conftest import tiny_model
from secateur.data import Examples
from secateur.models import open_model
from secateur.recovery import Plain, Schedule, Trainer, next_token


def schedule(**changes: Any) -> Schedule:
    given = {
        "steps": 12, "batch": 5, "micro": 2, "rate": 0.15, "relative": True, "warmup": 2, "seed": 3,
    }  # fmt: skip
    return Schedule(**{**given, **changes})


def trainer(objective: Any = next_token, **changes: Any) -> Any:
    model = tiny_model()
    ids = torch.randint(3, 128, (23, 16), generator=torch.Generator().manual_seed(2))
    ids[:, 8:] = ids[:, :8]  # something to learn
    consumers = {a.consumer.tensor for a in open_model(model).structure.axes}
    plain = Plain(model, sorted(consumers))
    options = {key: changes.pop(key) for key in ("store", "fingerprint") if key in changes}
    made = Trainer(
        model,
        plain.parameters,
        Examples.of_windows(ids),
        4,
        objective,
        schedule(**changes),
        device=torch.device("cpu"),
        **options,
    )
    return made, plain
