"""The settings of a benchmark: what is timed, where, and for how long."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationError

from ..errors import SecateurError
from .explain import explained
from .reading import Device, Reading

# What is taken where no contexts are named, as far as the model's own goes.
CONTEXTS = (128, 1024)
_MOST = 2**20


def _listed(value: Any, option: str, example: str) -> Any:
    """Whole numbers above zero, as a text with commas between them."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return value  # for pydantic to refuse
    parts = [part.strip() for part in value.split(",")]
    fits = all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts)
    if not fits or not all(0 < int(part) <= _MOST for part in parts):
        raise SecateurError(f"{option} {value[:40]} is no list of numbers above zero.\n{example}")
    return ",".join(str(one) for one in sorted({int(part) for part in parts}))


def _numbers(option: str, example: str) -> BeforeValidator:
    check: Callable[[Any], Any] = partial(
        _listed, option=option, example=f"Type: {option} {example}"
    )
    return BeforeValidator(check)


class BenchConfig(Reading):
    """What a benchmark times. Unknown keys are errors."""

    KNOWN: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dtype": dict.fromkeys(("auto", "float32", "bfloat16", "float16")),
    }

    model: Annotated[str, Field(description="Folder, or name on the Hugging Face hub")]
    batch_sizes: Annotated[
        str | int | list[int],
        _numbers("--batch-sizes", "1,4"),
        Field(description="Batch sizes that are timed"),
    ] = "1,4"
    contexts: Annotated[
        str | int | list[int] | None,
        _numbers("--contexts", "128,1024"),
        Field(description="Contexts, in tokens; default: 128,1024, as far as the model goes"),
    ] = None
    seconds: Annotated[
        float,
        Field(
            ge=0, le=86_400, allow_inf_nan=False, description="Seconds of timing in all; 0: none"
        ),
    ] = 60.0
    device: Device = "auto"
    dtype: Annotated[
        str, Field(description="Arithmetic of both models; auto: that of MODEL's weights")
    ] = "auto"

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes, ascending."""
        return tuple(int(part) for part in str(self.batch_sizes).split(","))

    def contexts_of(self, longest: int) -> tuple[int, ...]:
        """The contexts, ascending, for models that take `longest` tokens.

        Raises:
            SecateurError: one is longer.
        """
        if self.contexts is None:
            return tuple(one for one in CONTEXTS if one <= longest) or (longest,)
        found = tuple(int(part) for part in str(self.contexts).split(","))
        if found[-1] > longest:
            raise SecateurError(
                f"--contexts {found[-1]}: the models take {longest} tokens at most.\n"
                f"Type: --contexts {longest}"
            )
        return found


def make_bench_config(**settings: Any) -> BenchConfig:
    """Check settings.

    Raises:
        SecateurError: an unknown setting, a value of the wrong type or out of range.
    """
    try:
        return BenchConfig(**settings)
    except ValidationError as error:
        example = "secateur bench MODEL --against DENSE"
        raise SecateurError(explained(error, BenchConfig, example)) from error
