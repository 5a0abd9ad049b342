"""What all settings have in common: strict, frozen, within what a machine can count and name."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from ..errors import SecateurError
from ..paths import typed_path
from ..registry import choose

# No count of samples, tokens or steps is larger; torch's own sizes end not far above.
_MOST = 2**31 - 1
# Settings that may name a place.
_PLACES = ("model", "use", "calibration", "evaluate", "data", "teacher")


class Settings(BaseModel):
    """Settings of a run. Unknown keys are errors, and so are names that `KNOWN` does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    KNOWN: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @field_validator("*")
    @classmethod
    def _sound(cls, value: Any, info: Any) -> Any:
        if value is not None and info.field_name in cls.KNOWN:
            choose(info.field_name, value, cls.KNOWN[info.field_name])
        if type(value) is int and value > _MOST and info.field_name != "seed":
            raise SecateurError(
                f"--{str(info.field_name).replace('_', '-')} {value} is too large; expected at"
                f" most {_MOST}."
            )
        return value

    @field_validator(*_PLACES, check_fields=False)
    @classmethod
    def _nameable(cls, value: str | None, info: Any) -> str | None:
        """A name that the system can look up, whether something is there or not."""
        if value is not None:
            typed_path(value, f"--{info.field_name}")
        return value
