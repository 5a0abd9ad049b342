"""Loading: what was opened as a whole model of transformers."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from ..arguments import a_dtype, a_flag, a_folder_or_name, optional, public
from ..errors import SecateurError
from .opened import OpenModel
from .opening import open_model


@public(
    folder=a_folder_or_name,
    dtype=a_dtype,
    merge_adapter=optional(a_flag),
    dequantise=a_flag,
    text_only=a_flag,
)
def load(
    folder: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    text_only: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a pruned (or any supported) folder as a transformers model, ready for `generate`.

    A multimodal folder gives the whole model, unless `text_only`. `kwargs` go to the class's
    `from_pretrained` (for example `device_map`).

    Raises:
        SecateurError: as `open_model`.
    """
    opened = open_model(
        folder, merge_adapter=merge_adapter, dequantise=dequantise, text_only=text_only
    )
    return loaded(opened, dtype=dtype, **kwargs)


def loaded(opened: OpenModel, *, dtype: str | torch.dtype = "auto", **kwargs: Any) -> Any:
    """The whole transformers model of what was opened, by transformers' own `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    if dtype != "auto" and not isinstance(getattr(torch, str(dtype), dtype), torch.dtype):
        raise SecateurError(f"Unknown dtype {dtype!r}. Use auto, float32, bfloat16 or float16.")
    if opened.adapter is not None or opened.made:
        return _loaded_adapted(opened, dtype, kwargs)
    # The registered classes serve; code in the folder runs only if the caller says so.
    kwargs = {"trust_remote_code": False, **kwargs}
    around = opened.around
    kind: Any = AutoModelForCausalLM if around is None else around.kind
    try:
        model = kind.from_pretrained(opened.folder, dtype=dtype, **kwargs)
    except Exception as error:  # of many kinds: a file that is wrong, an argument it does not take
        reason = f"{type(error).__name__}, {' '.join(str(error).split())[:300]}"
        raise SecateurError(f"transformers does not load {opened.source}: {reason}") from error
    return model.eval()


def _loaded_adapted(opened: OpenModel, dtype: str | torch.dtype, kwargs: Mapping[str, Any]) -> Any:
    """The model of the stock class: no folder holds these tensors, so they are handed over."""
    import transformers

    whole = opened.around or opened
    assert whole.weights is not None, "what is loaded was opened with its weights"
    model_class: Any = type(whole.skeleton)
    state = {name: whole.weights.tensor(name) for name in whole.weights.specs}
    model = model_class.from_pretrained(
        None, config=whole.config, state_dict=state, dtype=dtype, **kwargs
    ).eval()
    place = opened.companions
    if place is not None and (place / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(place)
    return model
