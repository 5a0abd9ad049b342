"""LoRA through PEFT on a model whose layers have different widths, merged when it is done.

W + (alpha / rank) B A,   B = 0 at the start
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import OnDemand, View


class Lora:
    """Low-rank changes of `linears` (paths in `model`).

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

        self._turned = not isinstance(model.get_submodule(linears[0]), nn.Linear)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # a float is taken as well
            lora_dropout=dropout,
            target_modules=list(linears),
            fan_in_fan_out=self._turned,  # gpt2's Conv1D holds its weight the other way round
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

    def tensors(self, weights: View) -> Mapping[str, Tensor]:
        """The merged weights by tensor name, fp32: the changes added to `weights` as stored.

        Each is made when it is asked for, of the two factors: the model is no longer needed.
        """
        base = self._model.get_base_model()
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for path in self._linears:
            layer = base.get_submodule(path)
            pair = (getattr(layer, part)["default"].weight for part in ("lora_A", "lora_B"))
            down, up = (factor.detach().float().cpu() for factor in pair)
            factors[f"{path}.weight"] = down, up * layer.scaling["default"]
        turned = self._turned

        def merged(name: str) -> Tensor:
            down, up = factors[name]
            change = up @ down
            return weights.tensor(name).float() + (change.T if turned else change)

        return OnDemand(factors, merged)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's own layout, its lists in an order of their own."""
        self._model.save_pretrained(folder)
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])  # PEFT has a set of them
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
