"""Formats whose blocks have 256 values (k-quants): llama.cpp's own quantiser makes them.

It comes with llama-cpp-python (the extra `deploy`). Rows that 256 does not divide get blocks of 32,
or 16 bits (`gguf_types`).
"""

import ctypes
import errno
import os
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SecateurError


class Mixture(NamedTuple):
    """llama.cpp's name of a mixture of formats, and the one that most rows have."""

    name: str
    base: str


# By the name that is typed.
K_KINDS = {
    "q6_k": Mixture("MOSTLY_Q6_K", "Q6_K"),
    "q5_k_m": Mixture("MOSTLY_Q5_K_M", "Q5_K"),
    "q4_k_m": Mixture("MOSTLY_Q4_K_M", "Q4_K"),
    "q3_k_m": Mixture("MOSTLY_Q3_K_M", "Q3_K"),
    "q2_k": Mixture("MOSTLY_Q2_K", "Q2_K"),
}


def check_quantiser(kind: str) -> None:
    """Make sure that the quantiser is there, if the format `kind` needs it.

    Raises:
        SecateurError: it is not.
    """
    if kind in K_KINDS and find_spec("llama_cpp") is None:
        raise SecateurError(
            f"--type {kind} is made by llama.cpp, which is not installed.\n"
            'Type: pip install "secateur[deploy]", or choose --type q8_0'
        )


def quantised(whole: Path, file: Path, kind: str, ends: str | None = None) -> None:
    """Write `file` in the format `kind` from the one with whole numbers.

    `ends` is the format of embedding and head, where it is not left to llama.cpp.

    Raises:
        SecateurError: llama.cpp refuses.
    """
    import llama_cpp

    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{K_KINDS[kind].name}")
    if ends is not None:
        how.output_tensor_type = how.token_embedding_type = getattr(llama_cpp, f"GGML_TYPE_{ends}")
    failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(file).encode(), how)
    if failed and shutil.disk_usage(file.parent).free < whole.stat().st_size / 2:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    if failed:
        raise SecateurError(
            f"llama.cpp could not quantise the model to {kind}.\nChoose another: --type q8_0"
        )


@cache
def _silent() -> Any:
    """What llama.cpp says is dropped; kept for ever, as llama.cpp calls it for ever."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)
