"""Checkpoints that are another family's in all but name and layout: how to read them as that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import View
from . import baichuan

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What turns one kind of checkpoint into a stock one while it is read.

    `config` maps config.json (and the name for errors), `weights` wraps what the files hold,
    `tokenizer` reads the folder's tokenizer without the code that comes with it.
    """

    config: Callable[[Raw, str], dict[str, Any]]
    weights: Callable[[View, Raw, str], View]
    tokenizer: Callable[[Path], Any]


# By the model_type of config.json; none of these is a model_type of transformers.
ADAPTERS: dict[str, Adapter] = {
    "baichuan": Adapter(baichuan.llama_config, baichuan.llama_view, baichuan.tokenizer),
}
