"""A plain checkpoint of transformers: what every engine with the family's own class loads."""

from pathlib import Path
from typing import Any

from ..errors import SecateurError
from ..export import Form, whole_form, write_model
from .destinations import Asked, Written, destination


@destination(
    "uniform",
    engines="stock transformers, vLLM, SGLang, TensorRT-LLM, MLC, MLX: one width for all layers",
)
def uniform(folder: Path, asked: Asked) -> Written:
    """Write config.json and safetensors of the family's own class.

    Raises:
        SecateurError: the class does not hold the model.
    """
    form = whole_form(asked.opened)
    if not form.stock:
        raise SecateurError(
            f"{asked.opened.source} is no checkpoint of the stock class: {form.why}.\nPrune with"
            " --profile uniform, which keeps to one."
        )
    size = write_model(folder, form)
    return Written("config.json", "vllm serve {folder}", _facts(form, size), form)


@destination(
    "safetensors", engines="transformers, with `trust_remote_code=True` where layers differ"
)
def safetensors(folder: Path, asked: Asked) -> Written:
    """Write config.json, safetensors, and the modelling file where one is needed."""
    form = whole_form(asked.opened)
    size = write_model(folder, form)
    return Written("config.json", "", _facts(form, size), form)


def _facts(form: Form, size: int) -> dict[str, Any]:
    return {"class": form.architecture, "stock": form.stock, "bytes": size}
