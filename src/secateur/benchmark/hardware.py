"""What widths a device works on without a remainder.

A vector of a CPU holds 16 (NEON), 32 (AVX2) or 64 bytes (AVX-512). On a GPU, tensor cores are used
best where sizes are multiples of 128 bytes: NVIDIA, Deep Learning Performance, "Matrix
Multiplication Background", table 1 (A100 and later).
"""

import torch

_VECTORS = {"AVX2": 32, "AVX512": 64}
_NEON, _TENSOR_CORE = 16, 128


def natural_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """The number of values of `dtype` that widths should be multiples of on `device`."""
    if device.type == "cuda":
        return _TENSOR_CORE // dtype.itemsize
    return _VECTORS.get(processor(), _NEON) // dtype.itemsize


def processor() -> str:
    """What torch's kernels use of this CPU: DEFAULT, AVX2, AVX512 and others."""
    return str(torch.backends.cpu.get_cpu_capability())
