"""GGUF files, dequantised by transformers' own reader, one tensor when it is asked for.

The reader's table says which tensors of the file make a tensor of the model, its processors undo
what llama.cpp's conversion did to them (rows of q and k in another order, norms plus one).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import TensorSpec, View
from ...errors import SecateurError

# Weights in few bits are not exact in any floating-point type; this one has their range.
_OF_FEW_BITS = torch.bfloat16


def gguf_file(place: Path) -> Path | None:
    """The GGUF file that `place` is, or the one in a folder that has no other weights.

    Raises:
        SecateurError: a folder with many of them.
    """
    if place.is_file():
        return place if place.suffix.lower() == ".gguf" else None
    found = sorted(place.glob("*.gguf")) if place.is_dir() else []
    if not found or any(place.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise SecateurError(
            f"{place} has {len(found)} GGUF files, first {found[0].name}; it is not clear which is"
            f" meant.\nName one: {found[0]}"
        )
    return found[0]


class Gguf:
    """A GGUF file: its config, its tokenizer and its weights.

    Raises:
        SecateurError: the package gguf is missing, the file cannot be read, or it is of a model
            that transformers does not read from GGUF.
    """

    def __init__(self, file: Path) -> None:
        if find_spec("gguf") is None:
            raise SecateurError(
                f"{file} is read by the package gguf, which is not installed.\n"
                'Type: pip install "secateur[gguf]"'
            )
        self.file = file
        self._reader = _reader(file)
        self.raw, self.config = self._config()

    def weights(self, skeleton: Any) -> View:
        """What the file holds, under the names of `skeleton`, the empty model of its config.

        The first row of a tensor is the one that lies in the file.
        """
        from gguf import dequantize
        from transformers import modeling_gguf_pytorch_utils as own

        architecture = own.read_field(self._reader, "general.architecture")[0]
        kind = own.TENSOR_PROCESSORS.get(architecture, own.TensorProcessor)
        processor = kind(config=skeleton.config.to_dict())
        names = own.get_gguf_hf_weights_map(skeleton, processor)
        dtype: torch.dtype = skeleton.dtype
        shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
        sources: dict[str, list[Any]] = {}
        for tensor in self._reader.tensors:
            # the experts of a layer have a part of a name
            target = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
            if (target or tensor.name) in shapes:
                sources.setdefault(target or tensor.name, []).append(tensor)

        def read(name: str) -> Tensor:
            merged: dict[str, Tensor] = {}
            for source in sources[name]:
                found = processor.process(
                    weights=dequantize(source.data, source.tensor_type),
                    name=source.name,
                    tensor_key_mapping=names,
                    parsed_parameters={"tensors": merged},
                )
                if found.name is not None:
                    merged[name] = torch.from_numpy(found.weights.copy())
            return merged[name].to(dtype)

        return View(
            {name: TensorSpec(shapes[name], dtype) for name in sources},
            read,
            lambda name: torch.from_numpy(sources[name][0].data[:1].copy()),
        )

    def tokenizer(self) -> Any:
        """The tokenizer in the file."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.file.parent, gguf_file=self.file.name, trust_remote_code=False
        )

    def _config(self) -> tuple[dict[str, Any], Any]:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                self.file.parent, gguf_file=self.file.name, trust_remote_code=False
            )
        except Exception as error:  # the reader indexes, divides, and names what it lacks
            reason = " ".join(str(error).split())[:200]
            raise SecateurError(
                f"transformers does not read {self.file}: {reason}\n"
                "Give the model that it was made of, with its safetensors."
            ) from error
        config.dtype = _dtype(self._reader.tensors)
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
        raw = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
        return raw, config


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # numpy's, struct's and its own, all meaning the same
        reason = " ".join(str(error).split())[:160]
        raise SecateurError(
            f"{file} is no sound GGUF file ({reason}). Download it again."
        ) from error


def _dtype(tensors: Any) -> torch.dtype:
    """That of the matrices, if they are all of one floating-point type."""
    kinds = {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1}
    exact = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return exact.get(kinds.pop(), _OF_FEW_BITS) if len(kinds) == 1 else _OF_FEW_BITS
