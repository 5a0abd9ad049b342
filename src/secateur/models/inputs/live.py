"""Live modules: which of them can be read as they are, and what to do with the others."""

from typing import Any

from torch import nn

from ...errors import SecateurError

# Wrappers that hold the model as an attribute, by the name of their class.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


def check_live(model: nn.Module) -> None:
    """Refuse a module whose weights are not all there, or that wraps the model.

    Raises:
        SecateurError: it does; with what to do first.
    """
    name = type(model).__name__
    if name in _WRAPPERS:
        raise SecateurError(
            f"The module is a {name} around the model. Give the model: model.{_WRAPPERS[name]}"
        )
    if _has_adapters(model):
        raise SecateurError(
            f"The module ({name}) has adapters on its layers.\nMerge them first:"
            " model = model.merge_and_unload(), or give the folder with --merge-adapter."
        )
    if getattr(model, "config", None) is None or not hasattr(model, "get_input_embeddings"):
        raise SecateurError(
            f"The module is a {name}, expected a causal language model of transformers.\n"
            "Load one: AutoModelForCausalLM.from_pretrained(FOLDER)."
        )
    _check_there(model)
    head: Any = getattr(model, "get_output_embeddings", None)
    if head is None or head() is None:
        raise SecateurError(
            f"The module is a {name}, a model without its head; expected ...ForCausalLM.\n"
            "Load it with AutoModelForCausalLM.from_pretrained(FOLDER)."
        )


def holds_floats(model: nn.Module) -> bool:
    """Whether all parameters are ordinary floating-point numbers."""
    return all(p.dtype.is_floating_point and p.dtype.itemsize >= 2 for p in model.parameters())


def _has_adapters(model: nn.Module) -> bool:
    """PEFT's layers hold the layer that they change as `base_layer`."""
    return any(
        hasattr(module, "base_layer") and hasattr(module, "merge") for module in model.modules()
    )


def _check_there(model: nn.Module) -> None:
    empty = next((n for n, p in model.named_parameters() if p.is_meta), None)
    if empty is None:
        return
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    why = "are offloaded (device_map)" if offloaded else "are on the meta device"
    raise SecateurError(
        f"Weights of the module {why}, first {empty}: there is nothing to read.\nGive the folder"
        " or the hub name instead, which is read one layer at a time, or load it without"
        " device_map."
    )
