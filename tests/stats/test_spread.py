"""The spread of inputs: streamed, it is that of whole-model forwards, tokens weighed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.models import open_model
from secateur.stats import Walk, collect
from secateur.stats.spread import Spread


def captured(model: Any, tokens: Tensor, module: str) -> tuple[Tensor, Tensor]:
    """Input and output [token, channel] of a module in a forward of the whole model."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(
        lambda _, args, out: seen.extend(part.flatten(0, -2) for part in (args[0], out))
    )
    with torch.no_grad():
        model(tokens, use_cache=False)
    handle.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("variant", "behind"), [("llama-gqa", False), ("gemma3", True)])
def test_streamed_is_whole_model(variant: str, behind: bool, batch: int, tokens: Tensor) -> None:
    model = tiny_model(variant)
    opened = open_model(model)
    axes = opened.structure.axes
    found = collect(
        Walk(opened.streamed(device="cpu"), tokens, batch=batch), axes, ["input_spread"]
    )
    for axis in axes:
        inputs, output = captured(model, tokens, axis.consumer.module)
        stream, _ = captured(model, tokens, f"model.layers.{axis.layer}.input_layernorm")
        weights = 1 / (stream.square().mean(1) + 1e-6)
        if behind:
            weights = weights / (output.square().mean(1) + 1e-6)
        rows, weights = inputs.double(), weights.double() / weights.double().sum()
        centred = rows - weights @ rows
        expected = (centred * weights[:, None]).T @ centred
        torch.testing.assert_close(
            found[axis.name]["input_spread"].double(), expected, rtol=1e-3, atol=1e-7
        )


def test_what_is_kept_is_the_same_again_and_nothing_seen_has_no_spread() -> None:
    inputs = torch.randn(600, 5, generator=torch.Generator().manual_seed(0)) + 100
    weights = torch.rand(600, generator=torch.Generator().manual_seed(1))
    spread = Spread.empty(5)
    assert not spread.spread.any()
    spread.update(inputs[:300], weights[:300])
    again = Spread.from_state({name: own.clone() for name, own in spread.state().items()})
    for one in (spread, again):
        one.update(inputs[300:], weights[300:])
    assert torch.equal(spread.spread, again.spread)
    shares = weights.double() / weights.double().sum()
    centred = inputs.double() - shares @ inputs.double()
    expected = (centred * shares[:, None]).T @ centred
    torch.testing.assert_close(spread.spread.double(), expected, rtol=1e-4, atol=1e-6)
