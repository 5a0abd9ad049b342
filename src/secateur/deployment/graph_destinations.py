"""ONNX, by torch's own exporter: one graph that reads new tokens and the cache of those before.

    logits, present = graph(input_ids, attention_mask, past)

    input_ids       [batch, new]               attention_mask  [batch, before + new]
    past, present   by layer: key and value    [batch, KV heads of the layer, before, head]

Every length may be anything, nothing before among them. KV heads are those of each layer: the
graph has no other count. Names are those that ONNX Runtime GenAI and Optimum use.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SecateurError
from ..progress import note, track
from .destinations import Asked, Written, destination

# A graph with more bytes of weights has them in a file of their own: protobuf ends at 2 GB.
_INSIDE = 2**30
# Lengths of the example; no two alike, so that none is taken for another.
_BATCH, _BEFORE, _NEW = 2, 3, 4


class Step(nn.Module):
    """A model as a function of tokens and cache; `cached` are the layers that have one."""

    def __init__(self, model: nn.Module, cached: Sequence[int]) -> None:
        super().__init__()
        self.model, self.cached = model, tuple(cached)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits [batch, new, vocabulary], and the cache with the new tokens."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for place, layer in enumerate(self.cached):
            cache.update(past[2 * place], past[2 * place + 1], layer)
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        layers = found.past_key_values.layers
        return found.logits, tuple(
            part for layer in self.cached for part in (layers[layer].keys, layers[layer].values)
        )


@destination(
    "onnx", engines="ONNX Runtime and what reads ONNX", needs=("onnx", "onnxscript"), kinds=("f32",)
)
def onnx(folder: Path, asked: Asked) -> Written:
    """Write model.onnx, with the cache of each layer among its inputs and outputs.

    Raises:
        SecateurError: torch cannot export the model.
    """
    for _ in track(range(1), "exporting", 1, "graph"):
        program = exported(asked)
    weights = 4 * sum(spec.elements for spec in asked.opened.weights.specs.values())
    program.save(folder / "model.onnx", external_data=weights > _INSIDE)
    size = sum(file.stat().st_size for file in folder.iterdir())
    facts = {"layers with a cache": len(program.model.graph.outputs) // 2, "bytes": size}
    return Written("model.onnx", 'onnxruntime.InferenceSession("{path}")', facts)


@destination(
    "openvino",
    engines="OpenVINO",
    needs=("onnx", "onnxscript", "openvino"),
    kinds=("f16", "f32"),
)
def openvino(folder: Path, asked: Asked) -> Written:
    """Write model.xml and model.bin, converted from the ONNX graph.

    Raises:
        SecateurError: torch cannot export the model.
    """
    import openvino as library

    written = onnx(folder, asked)
    between = folder / written.file
    model = library.convert_model(between)
    library.save_model(model, folder / "model.xml", compress_to_fp16=asked.kind == "f16")
    del model
    for file in folder.glob("model.onnx*"):
        file.unlink()
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Written("model.xml", 'openvino.compile_model("{path}")', {"bytes": size})


def exported(asked: Asked) -> Any:
    """The graph of a model in fp32, all of which is in memory."""
    model = asked.opened.whole(torch.float32).eval()
    heads = _heads(model)
    if not heads:
        raise SecateurError(
            "No layer has attention left, and a graph without a cache is none that engines run.\n"
            "Prune less: --granularity kv_group,channel"
        )
    step = Step(model, list(heads)).eval()
    past = [torch.zeros(_BATCH, count, _BEFORE, width) for count, width in _doubled(heads)]
    ids = torch.ones(_BATCH, _NEW, dtype=torch.long)
    mask = torch.ones(_BATCH, _BEFORE + _NEW, dtype=torch.long)
    any_length = torch.export.Dim.DYNAMIC
    rows = {0: any_length, 1: any_length}
    kept = [f"{layer}.{part}" for layer in heads for part in ("key", "value")]
    try:
        with _quiet():
            program = torch.onnx.export(
                step,
                (ids, mask, past),
                dynamo=True,
                verbose=False,
                dynamic_shapes=(rows, rows, [{0: any_length, 2: any_length} for _ in past]),
                input_names=[
                    "input_ids",
                    "attention_mask",
                    *(f"past_key_values.{n}" for n in kept),
                ],
                output_names=["logits", *(f"present.{name}" for name in kept)],
            )
    except Exception as error:
        raise SecateurError(
            f"torch's exporter cannot make a graph of {asked.opened.source}, a"
            f" {asked.opened.family.model} ({type(error).__name__}).\nRun it in transformers."
        ) from error
    note("the graph was made by torch's exporter, for every length of batch, text and cache")
    return program


def _heads(model: nn.Module) -> dict[int, tuple[int, int]]:
    """By layer, how many KV heads its cache has and how wide they are."""
    with torch.no_grad():
        found: Any = model(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=True)
    return {
        number: (layer.keys.shape[1], layer.keys.shape[3])
        for number, layer in enumerate(found.past_key_values.layers)
        if getattr(layer, "keys", None) is not None and layer.keys.numel()
    }


def _doubled(heads: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for one in heads.values():
        yield from (one, one)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own talk."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        nowhere = io.StringIO()  # a graph that failed is printed whole
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
