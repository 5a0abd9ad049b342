"""What pydantic has against a setting, in words for users."""

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..arguments import shortened
from ..errors import SecateurError
from ..registry import choose


def _choices(annotation: Any) -> list[str]:
    """The texts of a `Literal`, whether there may be nothing or not."""
    parts = get_args(annotation)
    return [
        text for part in parts for text in ([part] if isinstance(part, str) else _choices(part))
    ]


def explained(error: ValidationError, model: type[BaseModel], example: str) -> str:
    """The first of its complaints; `example` is a command that would do."""
    fields = model.model_fields
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        try:
            choose("setting", name, fields)
        except SecateurError as unknown:
            return str(unknown)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SecateurError):
        return str(cause)
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        choices = _choices(fields[name].annotation)
        try:
            choose(f"--{name}", first["input"], dict.fromkeys(choices))
        except SecateurError as unknown:
            return str(unknown)
    if first["type"] == "missing":
        return f"{name} is missing. Type: {example}"
    about = fields[name].description if name in fields else ""
    return f"{name} = {shortened(first['input'])} will not do: {first['msg']}. ({about})"
