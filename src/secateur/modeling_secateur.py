"""Loads a decoder LLM whose layers have different widths.

This file travels inside every pruned checkpoint that a stock class cannot express, so that the
folder loads with `trust_remote_code=True` and nothing but torch and transformers installed. The
`secateur` package registers the very same classes, so that after `import secateur` the folder
loads without that flag.

`SecateurLlamaConfig` and `SecateurLlamaForCausalLM` are the stock `LlamaConfig` and
`LlamaForCausalLM` with one addition, and so for every other family: after the stock constructor
has built the dense model, the modules listed in `config.pruned_modules` get their true sizes.

    "pruned_modules": {
        "model.layers.0.mlp.down_proj": {"in_features": 96, "out_features": 64, "bias": true},
        "model.layers.0.self_attn": {"attributes": {"num_key_value_groups": 2}}
    }

`config.per_layer_config` holds the widths of each layer in transformers' own schema: caches and
other readers of the config find them there.

Licence: Apache-2.0.
"""

import logging
import sys
from typing import Any

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import nn

PREFIX = "Secateur"

# The stock constructor reads the dense widths from a config with per-layer widths on purpose, and
# readers that know one width only get the dense one; transformers would warn of each.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(
    lambda record: "Reading global config value" not in record.getMessage()
)


def resize(model: nn.Module, pruned_modules: dict[str, dict[str, Any]]) -> None:
    """Give every listed module of the freshly built dense `model` its true size, in place."""
    for path, sizes in pruned_modules.items():
        parent_path, _, name = path.rpartition(".")
        module = model.get_submodule(path)
        for attribute, value in sizes.get("attributes", {}).items():
            if not hasattr(module, attribute):
                raise ValueError(f"config.pruned_modules: {path} has no attribute {attribute!r}")
            setattr(module, attribute, value)
        if "in_features" in sizes:
            weight: Any = module.weight
            with torch.device(weight.device):
                linear = nn.Linear(
                    sizes["in_features"], sizes["out_features"], sizes["bias"], dtype=weight.dtype
                )
            setattr(model.get_submodule(parent_path), name, linear)


def _config_class(name: str) -> type:
    stock = getattr(transformers, name.removeprefix(PREFIX))

    def validate_architecture(self: Any) -> None:
        """The stock check ties hidden size to one head count; here every layer has its own."""

    return strict(
        type(
            name,
            (stock,),
            {
                "__module__": __name__,
                "__doc__": f"{stock.__name__} with `pruned_modules`, see the top of this file.",
                "model_type": f"secateur_{stock.model_type}",
                "validate_architecture": validate_architecture,
            },
        )
    )


def _model_class(name: str) -> type:
    stock = getattr(transformers, name.removeprefix(PREFIX))
    config_class = getattr(sys.modules[__name__], PREFIX + stock.config_class.__name__)

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        resize(self, config.pruned_modules)

    cls: Any = type(
        name,
        (stock,),
        {
            "__module__": __name__,
            "__doc__": f"{stock.__name__} with layers of different widths.",
            "__init__": init,
            "config_class": config_class,
        },
    )
    # save_pretrained then copies this file beside the weights, whoever loaded the model.
    config_class.register_for_auto_class("AutoConfig")
    cls.register_for_auto_class("AutoModelForCausalLM")
    return cls


def __getattr__(name: str) -> type:
    """Build `Secateur<Family>Config` or `Secateur<Family>ForCausalLM` when first asked for."""
    if not name.startswith(PREFIX) or not hasattr(transformers, name.removeprefix(PREFIX)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    built = _config_class(name) if name.endswith("Config") else _model_class(name)
    setattr(sys.modules[__name__], name, built)
    return built
