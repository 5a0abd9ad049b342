"""Devices and dtypes by the names that people give them."""

import torch

from ..errors import SecateurError
from ..registry import choose


def resolve_device(name: str) -> torch.device:
    """The device by name; `auto` is a CUDA device where there is one.

    Raises:
        SecateurError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SecateurError(f"Unknown device {name!r}. Use auto, cpu, cuda or cuda:1.") from error
    usable = device.type == "cpu" or (
        device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    )
    if not usable:
        raise SecateurError(f"This machine has no device {name!r}. Use --device cpu or auto.")
    return device


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype by name; None for `auto`."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return choose("dtype", name, {"auto": None, **dtypes})
