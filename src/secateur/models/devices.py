"""Devices and dtypes by the names that people give them."""

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import SecateurError
from ..launched import launched
from ..ranks import this
from ..registry import choose

# Instructions that torch's products in bf16 are faster by; of ARM's nothing was measured.
# Without them those in half precision take 7 to 8 times as long as in fp32 (AVX2, torch 2.13).
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def resolve_device(name: str) -> torch.device:
    """The device by name; `auto` is a CUDA device where there is one.

    Raises:
        SecateurError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if this().several and name.startswith("cuda"):
        name = _of_rank(name)
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


def _of_rank(name: str) -> str:
    """The GPU of this process, where there are several.

    Raises:
        SecateurError: one is named for all of them, or there are fewer than processes.
    """
    started, gpus = launched(), torch.cuda.device_count()
    if name not in ("cuda", f"cuda:{started.local}"):
        raise SecateurError(
            f"--device {name} is one GPU, and {started.here} processes run here.\n"
            "Type --device cuda: each takes its own."
        )
    if started.here > gpus:
        raise SecateurError(
            f"{started.here} processes run here, and this machine has {gpus} GPUs.\n"
            f"Type torchrun --nproc-per-node {max(gpus, 1)}, or --device cpu."
        )
    return f"cuda:{started.local}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices of bf16 faster than those of fp32, as far as is known.

    A torch that does not say what its CPU can do has one that cannot.
    """
    if device.type != "cpu":
        return True
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _BFLOAT16)


def dtype_name(dtype: torch.dtype) -> str:
    """What people call it."""
    return str(dtype).removeprefix("torch.")


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype by name; None for `auto`."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return choose("dtype", name, {"auto": None, **dtypes})


def computing_dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a model of `stored` weights computes in on `device`, by the setting's name.

    `auto` is the stored one, but fp32 where a CPU multiplies matrices of half precision slowly.
    """
    asked = resolve_dtype(name)
    if asked is not None:
        return asked
    fast = {torch.bfloat16: multiplies_bfloat16(device), torch.float16: device.type != "cpu"}
    return stored if fast.get(stored, True) else torch.float32
