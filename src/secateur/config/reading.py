"""The settings that pruning and recovery have in common: how a model is opened, texts are read."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..data import Bos
from ..registry import choose
from .base import Settings

# Settings as types, for each model to have in its own order.
TextField = Annotated[
    str | None, Field(description="Field (column, key) of a text; default: known ones")
]
BosMode = Annotated[
    Bos,
    Field(description="Windows that begin with BOS; auto: each, if the tokenizer adds it"),
]
Evaluate = Annotated[str, Field(description="Held-out text for perplexity, or none")]
EvaluateTokens = Annotated[
    int | None, Field(ge=2, description="Tokens of the held-out text at most")
]
Prompts = Annotated[
    int, Field(ge=0, le=4, description="Prompts that the report shows gone on with; 0: none")
]
Device = Annotated[str, Field(description="auto, cpu, cuda, cuda:1")]
DeviceGib = Annotated[
    float | None,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="GiB of hidden states on the GPU; default: what is free less a margin",
    ),
]
Resident = Annotated[
    Literal["auto", "yes", "no"],
    Field(description="Resident weights are read once; auto: if the GPU has room"),
]


def _known_format(name: str) -> str:
    from ..export import EXPORTERS  # brings transformers along, which takes seconds

    choose("format", name, EXPORTERS)
    return name


Format = Annotated[str, AfterValidator(_known_format), Field(description="Format of the weights")]


class Reading(Settings):
    """What is made of a model while it is read, where that is not clear from the files."""

    merge_adapter: Annotated[
        bool | None, Field(description="Merge the adapter in the folder into its base")
    ] = None
    dequantise: Annotated[bool, Field(description="Read quantised weights as floating point")] = (
        False
    )
    text_only: Annotated[
        bool, Field(description="Of a multimodal model, write the text decoder alone")
    ] = False

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `open_model`."""
        return {name: getattr(self, name) for name in READING}

    @property
    def machine(self) -> dict[str, Any]:
        """Arguments of `OpenModel.streamed`, which settings of pruning and recovery have."""
        names = ("device", "dtype", "resident", "device_gib")
        return {name: getattr(self, name) for name in names}


READING = tuple(Reading.model_fields)
