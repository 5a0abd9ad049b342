"""A folder with PEFT's adapter: merged into its base by PEFT itself, one layer at a time.

PEFT puts its layers on the empty model and reads the adapter into them. When a tensor is asked for,
its layer gets the weights of the base, merges them, and is thrown away.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint import View, read_json
from ...errors import SecateurError
from ..fitted import tied_names

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# The name that PEFT gives to the one adapter that it reads.
_NAME = "default"


def adapter_in(folder: Path, merge: bool | None) -> bool:
    """Whether an adapter in `folder` is to be merged; `merge` is what the user said of it.

    Raises:
        SecateurError: the folder has an adapter, and nobody said what is meant.
    """
    if not (folder / CONFIG).is_file():
        return False
    if merge is None and has_weights(folder):
        raise SecateurError(
            f"{folder} has a whole model and an adapter ({CONFIG}); it is not clear which is"
            " meant.\nAdd --merge-adapter (the model with the adapter) or --no-merge-adapter"
            " (without)."
        )
    if not merge and not has_weights(folder):
        base = read_json(folder / CONFIG).get("base_model_name_or_path")
        raise SecateurError(
            f"{folder} is an adapter and no model; it belongs to {base or 'a model it names not'}."
            "\nAdd --merge-adapter to merge the two while they are read."
        )
    return bool(merge)


def has_weights(folder: Path) -> bool:
    """Whether there are weights besides those of an adapter, and a config to them."""
    weights = (file for file in folder.glob("*.safetensors") if file.name != _WEIGHTS)
    return (folder / "config.json").is_file() and any(weights)


def base_of(folder: Path) -> str:
    """The base of the adapter in `folder`: the weights beside it, or what its config names.

    Raises:
        SecateurError: there is none, or the adapter lies in a pickle.
    """
    if not (folder / _WEIGHTS).is_file():
        raise SecateurError(
            f"{folder} has no {_WEIGHTS}; adapters in pickle files (.bin) can run code and are not"
            " read.\nLoad it with peft where you trust it, then model.save_pretrained(FOLDER)."
        )
    if has_weights(folder):
        return str(folder)
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SecateurError(
            f"{folder}/{CONFIG} names no base model.\n"
            'Write its folder or hub name there: "base_model_name_or_path".'
        )
    return base


def merged_view(base: View, skeleton: Any, folder: Path) -> View:
    """The weights of `base` with the adapter in `folder` merged; `skeleton` is the empty base.

    What stands for a tensor in a fingerprint is the first row of the base and what the adapter has.

    Raises:
        SecateurError: the adapter does not fit the base, or cannot be merged.
    """
    layers, saved = _parts(_adapted(copy.deepcopy(skeleton), folder))
    _check(layers, saved, skeleton, folder)

    def read(name: str) -> Tensor:
        if name in saved:
            changed = saved[name]
        elif (path := _owner(name)) in layers:
            with torch.no_grad():
                changed = _merged(layers[path], path, base, name)
        else:
            return base.tensor(name)
        return changed.detach().to(base.specs[name].dtype)

    def head(name: str) -> Tensor:
        if name in saved:
            return saved[name][:1].detach()
        if _owner(name) not in layers:
            return base.head(name)
        own = [p.detach() for p in layers[_owner(name)].parameters() if not _is_nothing(p)]
        return torch.cat([part.flatten().float() for part in (base.head(name), *own)])

    return View(base.specs, read, head, notes=base.notes)


def _check(
    layers: Mapping[str, Any], saved: Mapping[str, Tensor], skeleton: Any, folder: Path
) -> None:
    """What the adapter changes is there, and tied to nothing."""
    known = dict(skeleton.named_modules())
    unknown = next((path for path in layers if path not in known), None)
    if unknown is not None:
        raise _unfit(folder, f"it trains {unknown}, which the base does not have")
    both = {name for pair in tied_names(skeleton).items() for name in pair}
    touched = next((n for n in sorted(both) if n in saved or _owner(n) in layers), None)
    if touched is not None:
        raise SecateurError(
            f"The adapter in {folder} changes {touched}, which is tied to another tensor.\n"
            "Merge it with peft (merge_and_unload), save that, and give the folder."
        )


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _adapted(skeleton: Any, folder: Path) -> Any:
    """The base model with PEFT's layers in it."""
    try:
        model = _with_layers(skeleton, folder)
    except Exception as error:  # shapes, names, versions: PEFT says which
        raise _unfit(folder, error) from error
    if not hasattr(model, "merge_and_unload") or model.active_peft_config.is_prompt_learning:
        raise _unfit(folder, f"{model.active_peft_config.peft_type} has no weights to merge")
    return model.get_base_model()


def _parts(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's layers, by the paths of the modules that they stand for, and what it saved whole.

    That is modules, or what was trained or kept of the base (biases, embeddings).
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers: dict[str, Any] = {}
    saved = {name: p.data for name, p in model.named_parameters() if not _is_nothing(p)}
    inside = ""
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            state = module.modules_to_save[_NAME].state_dict()
            saved |= {f"{path}.{name}": tensor for name, tensor in state.items()}
        elif isinstance(module, BaseTunerLayer):
            layers[path] = model.get_submodule(path)
        else:
            continue
        inside = f"{path}."
    return layers, saved


def _with_layers(skeleton: Any, folder: Path) -> Any:
    """PEFT's model, with the weights of the adapter, and nothing in place of those of the base."""
    from peft import PeftModel

    # PEFT moves its layers to where the base is, and on meta they would lose what they hold: here
    # are tensors of the right shape that take no memory.
    for module in skeleton.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                nothing = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(nothing, requires_grad=False)
    return PeftModel.from_pretrained(skeleton, str(folder), low_cpu_mem_usage=True)


def _is_nothing(parameter: Tensor) -> bool:
    """Whether a parameter of the base is still in place of one that is not read yet."""
    return parameter.untyped_storage().nbytes() <= parameter.itemsize


def _merged(layer: Any, path: str, base: View, name: str) -> Tensor:
    """The parameter `name` after the layer at `path` was merged."""
    # What the file of the adapter has of the base's own (a bias that was trained) stays.
    own = layer.get_base_layer()._parameters
    read = [key for key, p in own.items() if p is not None and _is_nothing(p)]
    layer = copy.deepcopy(layer)
    for key in read:
        tensor = base.tensor(f"{path}.{key}").clone()
        layer.get_base_layer()._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    while hasattr(layer, "base_layer"):  # layers for single parameters lie in one another
        layer.merge()
        layer = layer.base_layer
    merged: Tensor = getattr(layer, name.rpartition(".")[2])
    return merged


def _unfit(folder: Path, why: Exception | str) -> SecateurError:
    reason = " ".join(str(why).split())[:200]
    return SecateurError(
        f"The adapter in {folder} cannot be merged into its base: {reason}\n"
        "Check base_model_name_or_path in its adapter_config.json."
    )
