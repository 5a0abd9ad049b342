"""The settings that say how a model is opened; pruning and recovery have them in common."""

from typing import Annotated, Any

from pydantic import Field

from .base import Settings


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


READING = tuple(Reading.model_fields)
