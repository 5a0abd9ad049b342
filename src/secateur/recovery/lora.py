"""LoRA through PEFT on a model whose layers have different widths, merged when it is done.

W + (alpha / rank) B A,   B = 0 at the start
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Weights


class Lora:
    """Low-rank changes of `linears` (paths in `model`); needs the package peft.

    The defaults of its settings are LLM-Pruner's (2305.11627): rank 8, alpha 16, dropout 0.05 on
    every linear of the decoder.
    """

    def __init__(
        self,
        model: Any,
        linears: Sequence[str],
        *,
        rank: int,
        alpha: float,
        dropout: float,
        seed: int,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        turned = not isinstance(model.get_submodule(linears[0]), nn.Linear)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # a float is taken as well
            lora_dropout=dropout,
            target_modules=list(linears),
            fan_in_fan_out=turned,  # gpt2's Conv1D holds its weight the other way round
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for what it calls by another name by now
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self._model: Any = get_peft_model(model, config)
        self._linears = tuple(linears)
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()

    def tensors(self, weights: Weights) -> dict[str, Tensor]:
        """The merged weights by tensor name, fp32: the changes added to `weights` as stored."""
        base = self._model.get_base_model()
        found: dict[str, Tensor] = {}
        for path in self._linears:
            layer = base.get_submodule(path)
            with torch.no_grad():
                change = layer.get_delta_weight("default").float().cpu()
            found[f"{path}.weight"] = weights.tensor(f"{path}.weight").float() + change
        return found

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's own layout."""
        self._model.save_pretrained(folder)
