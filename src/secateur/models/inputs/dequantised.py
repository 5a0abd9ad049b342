"""Quantised weights read as the floating-point ones that they stand for, a tensor at a time.

Every class here takes a checkpoint's weights, the settings in its config.json, and the dtype of the
result; codes and scales are put together in fp32.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...checkpoint import TensorSpec, Weights
from ...errors import SecateurError

Settings = Mapping[str, Any]


class Dequantised:
    """Weights of which some are made of several stored ones.

    `codes` says which stored tensor has the codes of a weight, by the weight's name; `parts` are
    the endings of what else belongs to codes and is a weight of its own no more.
    """

    parts: tuple[str, ...] = ()

    def __init__(self, weights: Weights, settings: Settings, dtype: torch.dtype) -> None:
        self._weights, self._settings, self._dtype = weights, settings, dtype
        self._codes = self.codes()
        used = set(self._codes.values())
        self._specs: dict[str, TensorSpec] = {}
        names = {code: name for name, code in self._codes.items()}
        for stored, spec in weights.specs.items():
            if stored in used:
                self._specs[names[stored]] = TensorSpec(self.shape(names[stored]), dtype)
            elif not stored.endswith(self.parts):
                self._specs[stored] = spec

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names and shapes of the floating-point model."""
        return self._specs

    def tensor(self, name: str) -> Tensor:
        """Read a tensor; one in codes is made of its parts."""
        if name not in self._codes:
            return self._weights.tensor(name)
        return self.floating(name).to(self._dtype)

    def head(self, name: str) -> Tensor:
        """The first row as it is stored: for fingerprints."""
        return self._weights.head(self._codes.get(name, name))

    def codes(self) -> dict[str, str]:
        """The stored codes, by the names of the weights that they stand for."""
        raise NotImplementedError

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the floating-point weight: that of its codes, if a code has a value."""
        return self._weights.specs[self._codes[name]].shape

    def floating(self, name: str) -> Tensor:
        """The weight that codes stand for, in fp32 or the dtype of the result."""
        raise NotImplementedError

    def _part(self, name: str) -> Tensor:
        """A stored tensor without which codes have no value."""
        if name not in self._weights.specs:
            raise SecateurError(
                f"The checkpoint lacks {name}, by which codes are scaled. Download the model again."
            )
        return self._weights.tensor(name)

    def _beside(self, code: str, *endings: str) -> str | None:
        """The first stored tensor with one of these endings beside `code`."""
        path = code.rpartition(".")[0]
        return next((n for e in endings if (n := f"{path}.{e}") in self._weights.specs), None)


class Blocks(Dequantised):
    """fp8 and mxfp8: the codes are 8-bit floats, and blocks of them share a scale.

    w = code * scale of its block
    """

    parts = (
        "_scale_inv",
        ".qscale_weight",
        ".weight_scale",
        ".activation_scale",
        ".input_scale",
        ".qscale_act",
        ".k_scale",
        ".v_scale",
    )

    def codes(self) -> dict[str, str]:  # noqa: D102
        eight = (torch.float8_e4m3fn, torch.float8_e5m2)
        return {n: n for n, spec in self._weights.specs.items() if spec.dtype in eight}

    def floating(self, name: str) -> Tensor:  # noqa: D102
        stored = self._weights.specs
        scale = f"{name}_scale_inv" if f"{name}_scale_inv" in stored else None
        scale = scale or self._beside(name, "scale", "qscale_weight", "weight_scale")
        if scale is None:
            raise SecateurError(
                f"The fp8 tensor {name} has no scale beside it. Download the model again."
            )
        factors = self._weights.tensor(scale)
        if factors.dtype == torch.uint8:  # exponents of two
            factors = (factors.float() - 127).exp2()
        codes = self._weights.tensor(name).float()
        return codes * spread(factors.float(), codes.shape, self._settings.get("weight_block_size"))


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


class RowsOfInt8(Dequantised):
    """bitsandbytes in 8 bits: rows of int8 whose largest magnitude is `SCB`.

    w = code * SCB / 127
    """

    parts = (".SCB", ".weight_format")

    def codes(self) -> dict[str, str]:  # noqa: D102
        return {n: n for n, s in self._weights.specs.items() if s.dtype == torch.int8}

    def floating(self, name: str) -> Tensor:  # noqa: D102
        scale = self._part(f"{name.removesuffix('.weight')}.SCB").float()
        return self._weights.tensor(name).float() * scale[:, None] / 127


class BitsAndBytes4(Dequantised):
    """bitsandbytes in 4 bits (nf4, fp4), by its own code; double quantisation included."""

    _STATE = ".quant_state.bitsandbytes__"
    parts = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", "nf4", "fp4")

    def codes(self) -> dict[str, str]:  # noqa: D102
        states = (n.partition(self._STATE) for n in self._weights.specs if self._STATE in n)
        return {name: name for name, _, _ in states}

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        packed = self._weights.tensor(self._state(name))
        return tuple(json.loads(bytes(packed.tolist()))["shape"])

    def floating(self, name: str) -> Tensor:  # noqa: D102
        from bitsandbytes.functional import QuantState, dequantize_4bit

        stored = {
            other.removeprefix(f"{name}."): self._weights.tensor(other)
            for other in self._weights.specs
            if other.startswith(f"{name}.")
        }
        state = QuantState.from_dict(stored, device=torch.device("cpu"))
        found: Tensor = dequantize_4bit(self._weights.tensor(name), state)
        return found

    def _state(self, name: str) -> str:
        return next(n for n in self._weights.specs if n.startswith(name + self._STATE))


class Mxfp4(Dequantised):
    """mxfp4 of gpt-oss: 32 codes of 4 bits share an exponent; by transformers' own code."""

    parts = ("_scales",)

    def codes(self) -> dict[str, str]:  # noqa: D102
        endings = ("gate_up_proj_blocks", "down_proj_blocks")
        names = (name for name in self._weights.specs if name.endswith(endings))
        return {name.removesuffix("_blocks"): name for name in names}

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        experts, rows, groups, packed = self._weights.specs[self._codes[name]].shape
        return (experts, groups * packed * 2, rows)

    def floating(self, name: str) -> Tensor:  # noqa: D102
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        codes = self._weights.tensor(self._codes[name])
        scales = self._part(f"{name}_scales")
        return convert_moe_packed_tensors(codes, scales, dtype=self._dtype).contiguous()


class CompressedTensors(Dequantised):
    """compressed-tensors, by the package of that name: a linear's codes and scales, decompressed.

    Which scheme a linear has is decided as transformers decides it.
    """

    parts = (
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

    def __init__(self, weights: Weights, settings: Settings, dtype: torch.dtype) -> None:
        from compressed_tensors.quantization import QuantizationConfig

        self._config = QuantizationConfig.model_validate(
            {
                key: value
                for key, value in settings.items()
                if key in QuantizationConfig.model_fields
            }
        )
        super().__init__(weights, settings, dtype)

    def codes(self) -> dict[str, str]:  # noqa: D102
        scales = [n for n in self._weights.specs if n.endswith(".weight_scale")]
        found = {}
        for scale in scales:
            code = self._beside(scale, "weight_packed", "weight")
            if code is not None:
                found[scale.removesuffix("_scale")] = code
        return found

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        stated = f"{name}_shape"
        if stated in self._weights.specs:
            return tuple(self._weights.tensor(stated).tolist())
        rows, columns = self._weights.specs[self._codes[name]].shape
        return (rows, columns) if self._codes[name] == name else (rows, columns * 2)

    def floating(self, name: str) -> Tensor:  # noqa: D102
        from compressed_tensors.compressors import BaseCompressor
        from transformers.integrations.compressed_tensors import (
            get_dense_scheme,
            get_experts_scheme,
        )

        scheme = (get_experts_scheme if ".experts." in name else get_dense_scheme)(self._config)
        parts = [self._codes[name], *(name.removesuffix(".weight") + part for part in self.parts)]
        stored = {
            part.rpartition(".")[2]: self._weights.tensor(part)
            for part in parts
            if part in self._weights.specs
        }
        compressor = BaseCompressor.get_value_from_registry(scheme.format or self._config.format)
        found: Tensor = compressor.decompress(stored, scheme)["weight"]
        return found
