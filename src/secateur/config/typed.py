"""The settings as types: `secateur.prune("m", rato=3)` is an error to a type checker.

Made by scripts/typed_settings.py from the models beside this file; do not edit it.
"""

from typing import Any, Literal, TypedDict


class PruneSettings(TypedDict, total=False):
    """Settings of `secateur.prune`."""

    merge_adapter: bool | None
    dequantise: bool
    text_only: bool
    method: str
    effort: str
    use: str | None
    ratio: float | None
    parameters: str | int | float | None
    memory: str | int | float | None
    speedup: float | None
    latency: str | None
    at_context: int | None
    at_batch: int
    of: Literal["linears", "model"]
    importance: str | None
    fusion: str | None
    fine: Literal["first", "second", "mixed"]
    tau: float | None
    probes: int | None
    splits: int | None
    shrinkage: float | None
    scope: Literal["layer_kind", "global"] | None
    members: str
    search: str | None
    search_minutes: float | None
    search_rounds: int | None
    rescore: bool
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
    align: int | None
    stock: bool
    profile: str
    tensor_parallel: int
    calibration: Any
    samples: int
    length: int | None
    field: str | None
    bos: Literal["auto", "each", "document", "never"]
    evaluate: Any
    evaluate_tokens: int | None
    prompts: int
    batch: int
    seed: int
    device: str
    dtype: str
    hidden_gib: float
    device_gib: float | None
    resident: Literal["auto", "yes", "no"]
    format: str


class RecoverSettings(TypedDict, total=False):
    """Settings of `secateur.recover`."""

    merge_adapter: bool | None
    dequantise: bool
    text_only: bool
    recipe: str
    data: Any
    train: str | None
    loss: str | None
    teacher: str | None
    top_k: int
    samples: int
    length: int | None
    field: str | None
    bos: Literal["auto", "each", "document", "never"]
    on_prompts: bool
    steps: int | None
    epochs: int | None
    minutes: float | None
    batch: int | None
    micro: int | None
    recompute: str
    shard: bool
    rate: float | None
    warmup: int | None
    patience: int
    rank: int
    alpha: float
    dropout: float
    bits: int
    group: int
    grid: str
    evaluate: Any
    evaluate_tokens: int | None
    prompts: int
    seed: int
    device: str
    dtype: str
    hidden_gib: float
    device_gib: float | None
    resident: Literal["auto", "yes", "no"]
    format: str


class BenchSettings(TypedDict, total=False):
    """Settings of `secateur.bench`."""

    merge_adapter: bool | None
    dequantise: bool
    text_only: bool
    batch_sizes: str | int | list[int]
    contexts: str | int | list[int] | None
    seconds: float
    device: str
    dtype: str
