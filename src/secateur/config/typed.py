"""The settings as types: `secateur.prune("m", rato=3)` is an error to a type checker.

Made by scripts/typed_settings.py from the models beside this file; do not edit it.
"""

from typing import Literal, TypedDict


class PruneSettings(TypedDict, total=False):
    """Settings of `secateur.prune`."""

    method: str
    use: str | None
    ratio: float
    of: Literal["linears", "model"]
    importance: str | None
    fusion: str | None
    members: str
    search: str | None
    repair: str | None
    scale: str | None
    target: str
    damping: float | None
    attention_units: int | None
    attention_ratio: float | None
    square_attention: bool
    layers: str | None
    attention_layers: str | None
    mlp_layers: str | None
    granularity: str | None
    align: int
    calibration: str | None
    samples: int
    length: int | None
    evaluate: str
    evaluate_tokens: int | None
    batch: int
    seed: int
    device: str
    dtype: str
    hidden_gib: float


class RecoverSettings(TypedDict, total=False):
    """Settings of `secateur.recover`."""

    recipe: str
    data: str | None
    train: str | None
    loss: str | None
    teacher: str | None
    top_k: int
    samples: int
    length: int | None
    on_prompts: bool
    steps: int | None
    epochs: int | None
    batch: int | None
    micro: int
    rate: float | None
    warmup: int | None
    patience: int
    rank: int
    alpha: float
    dropout: float
    bits: int
    group: int
    grid: str
    evaluate: str
    evaluate_tokens: int | None
    seed: int
    device: str
    dtype: str
    hidden_gib: float
