"""Quantised checkpoints: what they are called, and which of them can be read as floating point.

A scheme is known by `quantization_config` in config.json, by the file that its tool leaves beside
the weights, or by the names of its tensors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import View
from ...errors import SecateurError
from .dequantised import bits_and_bytes_4, blocks, compressed_tensors, mxfp4, rows_of_int8

Settings = Mapping[str, Any]
Reader = Callable[[View, Settings, torch.dtype], View]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to quantise: its name for users, and how it is read as floating point.

    Without a `reader` there is none here, and `cure` says what to do instead; `package` is one
    that reading needs.
    """

    name: str
    reader: Reader | None = None
    package: str | None = None
    cure: str = "Give the floating-point model that it was made of."


_GPTQ = (
    "Give the floating-point model, or write one with the tool of the format (GPTQModel:"
    " GPTQModel.dequantize)."
)
_SCHEMES = {
    "gptq": Scheme("GPTQ", cure=_GPTQ),
    "awq": Scheme("AWQ"),
    "bitsandbytes_4bit": Scheme("bitsandbytes, 4 bits", bits_and_bytes_4, "bitsandbytes"),
    "bitsandbytes_8bit": Scheme("bitsandbytes, 8 bits", rows_of_int8),
    "fp8": Scheme("fp8", blocks),
    "mxfp8": Scheme("mxfp8", blocks),
    "mxfp4": Scheme("mxfp4", mxfp4),
    "compressed-tensors": Scheme("compressed-tensors", compressed_tensors, "compressed_tensors"),
    "modelopt": Scheme("NVIDIA ModelOpt"),
}
# What the tools leave beside the weights, whatever config.json says.
_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# The last part of tensor names, the tell-tale ones first.
_TENSORS = (
    ("g_idx", "gptq"),
    ("qweight", "gptq"),
    ("absmax", "bitsandbytes_4bit"),
    ("quant_map", "bitsandbytes_4bit"),
    ("SCB", "bitsandbytes_8bit"),
    ("weight_packed", "compressed-tensors"),
    ("weight_scale_inv", "fp8"),
    ("weight_scale", "compressed-tensors"),
    ("gate_up_proj_blocks", "mxfp4"),
    ("down_proj_blocks", "mxfp4"),
)


def scheme_of(raw: Mapping[str, Any], folder: Path, names: Iterable[str]) -> Scheme | None:
    """How a checkpoint with this config.json and tensors `names` is quantised; None: not at all."""
    settings = raw.get("quantization_config") or raw.get("compression_config")
    if isinstance(settings, Mapping) and settings:
        return _stated(settings)
    last = {name.rpartition(".")[2] for name in names}
    by_file = next((m for file, m in _FILES.items() if (folder / file).is_file()), None)
    by_name = next((method for part, method in _TENSORS if part in last), None)
    if by_name is None:  # a file that its tool forgot beside floating-point weights says nothing
        return None
    return _SCHEMES[by_file if by_file and "qweight" in last else by_name]


def dequantised(
    view: View, scheme: Scheme, raw: Mapping[str, Any], source: str, *, wanted: bool
) -> View:
    """`view` read as the floating-point ones that they stand for, if that is `wanted`.

    Raises:
        SecateurError: it is not, or there is no way to.
    """
    what = f"{source} is quantised ({scheme.name})"
    if scheme.reader is None:
        raise SecateurError(f"{what}, and is not read as floating point here.\n{scheme.cure}")
    if not wanted:
        raise SecateurError(
            f"{what}. Give the floating-point model and quantise the result, or add --dequantise"
            " to read it as floating point."
        )
    if scheme.package is not None and find_spec(scheme.package) is None:
        package = scheme.package.replace("_", "-")
        raise SecateurError(
            f"{what}, and reading that needs the package {package}.\nType: pip install {package}"
        )
    settings = raw.get("quantization_config") or raw.get("compression_config") or {}
    return scheme.reader(view, settings, dtype_of(raw))


def dtype_of(raw: Mapping[str, Any]) -> torch.dtype:
    """The floating-point dtype that config.json names; bf16 if it names none."""
    inner = raw.get("text_config") or {}
    stated = [place.get(key) for place in (raw, inner) for key in ("dtype", "torch_dtype")]
    named = next((str(name).removeprefix("torch.") for name in stated if name), "bfloat16")
    found = getattr(torch, named, None)
    if isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1:
        return found
    return torch.bfloat16


def without_quantisation(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without a word of quantisation."""
    words = ("quantization_config", "compression_config")
    return {key: value for key, value in raw.items() if key not in words}


def _stated(settings: Mapping[str, Any]) -> Scheme:
    method = str(settings.get("quant_method") or "").lower().replace("_", "-")
    if method == "bitsandbytes" or settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        method = "bitsandbytes_8bit" if settings.get("load_in_8bit") else "bitsandbytes_4bit"
    if not method and settings.get("format"):
        method = "compressed-tensors"
    return _SCHEMES.get(method) or Scheme(method or "by a method that config.json does not name")
