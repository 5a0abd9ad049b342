"""The config of a checkpoint whose layers differ, as engines that know DeciLMForCausalLM read it.

This file lies beside such a checkpoint and imports nothing but transformers. A block's sizes are
attributes there: `block_configs[3].ffn.intermediate_size`.
"""

from typing import Any

from transformers import LlamaConfig


class Block(dict[str, Any]):
    """A dictionary, so that it is written as one, with its entries as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _block(value: Any) -> Any:
    return Block({k: _block(v) for k, v in value.items()}) if isinstance(value, dict) else value


class SecateurDeciConfig(LlamaConfig):
    """A Llama's config with the sizes of each layer's attention and MLP."""

    model_type = "nemotron-nas"

    def __post_init__(self, **kwargs: Any) -> None:
        """Take `block_configs` of config.json, which no field is for."""
        blocks = kwargs.pop("block_configs", ())
        super().__post_init__(**kwargs)
        self.block_configs = [_block(block) for block in blocks]

    def validate_architecture(self) -> None:
        """Heads need not be as wide together as the stream: either may be cut."""
