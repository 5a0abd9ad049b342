"""Quantised weights read as the floating-point ones that they stand for, a tensor at a time.

Every function here takes a checkpoint's weights, the settings in its config.json, and the dtype of
the result; codes and scales are put together in fp32.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...checkpoint import TensorSpec, View, only, together
from ...errors import SecateurError

Settings = Mapping[str, Any]

# The endings of what belongs to codes and is a weight of its own no more.
_OF_BLOCKS = (
    "_scale_inv",
    ".qscale_weight",
    ".weight_scale",
    ".activation_scale",
    ".input_scale",
    ".qscale_act",
    ".k_scale",
    ".v_scale",
)
_OF_FOUR_BITS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", "nf4", "fp4")
_STATE = ".quant_state.bitsandbytes__"
_OF_COMPRESSED = (
    ".weight_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".weight_global_scale",
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
)


def _floating(
    view: View,
    dtype: torch.dtype,
    codes: Mapping[str, str],
    parts: tuple[str, ...],
    value: Callable[[str], Tensor],
    shape: Callable[[str], tuple[int, ...]] | None = None,
) -> View:
    """`view` with the weights that `codes` names in place of their codes; `parts` are left out.

    `value` gives such a weight by its name. Its `shape` is that of its codes, if a code has a
    value; its first row is the one that is stored: for fingerprints.
    """
    shape = shape or (lambda name: view.specs[codes[name]].shape)
    made = View(
        {name: TensorSpec(shape(name), dtype) for name in codes},
        lambda name: value(name).to(dtype),
        lambda name: view.head(codes[name]),
    )
    names = {code: name for name, code in codes.items()}
    left = (names.get(n, n) for n in view.specs if n in names or not n.endswith(parts))
    return only(together(view, made), left)


def _part(view: View, name: str) -> Tensor:
    """A stored tensor without which codes have no value."""
    if name not in view.specs:
        raise SecateurError(
            f"The checkpoint lacks {name}, by which codes are scaled. Download the model again."
        )
    return view.tensor(name)


def _beside(view: View, code: str, *endings: str) -> str | None:
    """The first stored tensor with one of these endings beside `code`."""
    path = code.rpartition(".")[0]
    return next((n for e in endings if (n := f"{path}.{e}") in view.specs), None)


def blocks(view: View, settings: Settings, dtype: torch.dtype) -> View:
    """fp8 and mxfp8: the codes are 8-bit floats, and blocks of them share a scale.

    w = code * scale of its block
    """
    eight = (torch.float8_e4m3fn, torch.float8_e5m2)
    codes = {name: name for name, spec in view.specs.items() if spec.dtype in eight}

    def value(name: str) -> Tensor:
        scale = f"{name}_scale_inv" if f"{name}_scale_inv" in view.specs else None
        scale = scale or _beside(view, name, "scale", "qscale_weight", "weight_scale")
        if scale is None:
            raise SecateurError(
                f"The fp8 tensor {name} has no scale beside it. Download the model again."
            )
        factors = view.tensor(scale)
        if factors.dtype == torch.uint8:  # exponents of two
            factors = (factors.float() - 127).exp2()
        codes = view.tensor(name).float()
        return codes * spread(factors.float(), codes.shape, settings.get("weight_block_size"))

    return _floating(view, dtype, codes, _OF_BLOCKS, value)


def spread(
    scales: Float[Tensor, "*blocks"], shape: torch.Size, block: Any = None
) -> Float[Tensor, "*sizes"]:
    """One factor for each value, from one for each block of the last two dimensions.

    Blocks at the end may be cut short; their size is `block` where the grid does not say it.
    """
    if scales.numel() == 1:
        return scales.reshape([1] * len(shape))
    for dim in (-2, -1):
        if scales.dim() < -dim or scales.shape[dim] in (1, shape[dim]):
            continue
        even = shape[dim] % scales.shape[dim] == 0 and not isinstance(block, list)
        size = shape[dim] // scales.shape[dim] if even else int((block or [128, 128])[dim])
        scales = scales.repeat_interleave(size, dim).narrow(dim, 0, shape[dim])
    return scales if scales.dim() == len(shape) else scales[..., None]


def rows_of_int8(view: View, settings: Settings, dtype: torch.dtype) -> View:
    """Bitsandbytes in 8 bits: rows of int8 whose largest magnitude is `SCB`.

    w = code * SCB / 127
    """
    codes = {name: name for name, spec in view.specs.items() if spec.dtype == torch.int8}

    def value(name: str) -> Tensor:
        scale = _part(view, f"{name.removesuffix('.weight')}.SCB").float()
        return view.tensor(name).float() * scale[:, None] / 127

    return _floating(view, dtype, codes, (".SCB", ".weight_format"), value)


def bits_and_bytes_4(view: View, settings: Settings, dtype: torch.dtype) -> View:
    """Bitsandbytes in 4 bits (nf4, fp4), by its own code; double quantisation included."""
    states = {name.partition(_STATE)[0]: name for name in view.specs if _STATE in name}

    def value(name: str) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        stored = {
            other.removeprefix(f"{name}."): view.tensor(other)
            for other in view.specs
            if other.startswith(f"{name}.")
        }
        state = QuantState.from_dict(stored, device=torch.device("cpu"))
        found: Tensor = dequantize_4bit(view.tensor(name), state)
        return found

    def shape(name: str) -> tuple[int, ...]:
        return tuple(json.loads(bytes(view.tensor(states[name]).tolist()))["shape"])

    codes = {name: name for name in states}
    return _floating(view, dtype, codes, _OF_FOUR_BITS, value, shape)


def mxfp4(view: View, settings: Settings, dtype: torch.dtype) -> View:
    """mxfp4 of gpt-oss: 32 codes of 4 bits share an exponent; by transformers' own code."""
    endings = ("gate_up_proj_blocks", "down_proj_blocks")
    codes = {name.removesuffix("_blocks"): name for name in view.specs if name.endswith(endings)}

    def value(name: str) -> Tensor:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        stored, scales = view.tensor(codes[name]), _part(view, f"{name}_scales")
        return convert_moe_packed_tensors(stored, scales, dtype=dtype).contiguous()

    def shape(name: str) -> tuple[int, ...]:
        experts, rows, groups, packed = view.specs[codes[name]].shape
        return (experts, groups * packed * 2, rows)

    return _floating(view, dtype, codes, ("_scales",), value, shape)


def compressed_tensors(view: View, settings: Settings, dtype: torch.dtype) -> View:
    """compressed-tensors, by the package of that name: a linear's codes and scales, decompressed.

    Which scheme a linear has is decided as transformers decides it.
    """
    from compressed_tensors.quantization import QuantizationConfig

    known = {
        key: value for key, value in settings.items() if key in QuantizationConfig.model_fields
    }
    config = QuantizationConfig.model_validate(known)
    found = {
        name.removesuffix("_scale"): _beside(view, name, "weight_packed", "weight")
        for name in view.specs
        if name.endswith(".weight_scale")
    }
    codes = {name: code for name, code in found.items() if code is not None}

    def value(name: str) -> Tensor:
        from compressed_tensors.compressors import BaseCompressor
        from transformers.integrations.compressed_tensors import (
            get_dense_scheme,
            get_experts_scheme,
        )

        scheme = (get_experts_scheme if ".experts." in name else get_dense_scheme)(config)
        parts = [codes[name], *(name.removesuffix(".weight") + part for part in _OF_COMPRESSED)]
        stored = {p.rpartition(".")[2]: view.tensor(p) for p in parts if p in view.specs}
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        weight: Tensor = compressor.decompress(stored, scheme)["weight"]
        return weight

    def shape(name: str) -> tuple[int, ...]:
        if f"{name}_shape" in view.specs:
            return tuple(view.tensor(f"{name}_shape").tolist())
        rows, columns = view.specs[codes[name]].shape
        return (rows, columns) if codes[name] == name else (rows, columns * 2)

    return _floating(view, dtype, codes, _OF_COMPRESSED, value, shape)
