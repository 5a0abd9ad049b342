"""What units are called, in words."""

# By granularity.
KINDS = {
    "kv_group": "attention heads",
    "query_head": "attention heads",
    "channel": "MLP channels",
    "expert_channel": "channels of experts",
    "expert": "experts",
    "attention_block": "attention blocks",
    "mlp_block": "MLP blocks",
    "layer": "layers",
    "hidden": "channels of the residual stream",
}
# What has a score of its own: heads that share keys and values have one together.
_SCORED = KINDS | {"kv_group": "KV groups"}


def kind_name(granularity: str) -> str:
    """Several such units."""
    return KINDS.get(granularity, granularity)


def scored_name(granularity: str) -> str:
    """Several units that have one score each."""
    return _SCORED.get(granularity, granularity)
