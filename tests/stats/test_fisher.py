"""What an error at a consumer's output costs: by the streamed pass, and by the whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EVERY_FAMILY_SLOWLY, tiny_model
from secateur.models import open_model
from secateur.stats import Walk, collect_gradients


def whole_model(model: Any, tokens: Tensor, consumers: dict[str, str]) -> dict[str, Tensor]:
    """Squared gradients by the outputs of some modules, a mean over tokens, by autograd."""
    outputs: dict[str, Tensor] = {}
    hooks = []
    for axis, name in consumers.items():

        def keep(module: Any, args: Any, output: Tensor, axis: str = axis) -> Tensor:
            own = outputs[axis] = output.clone()
            own.retain_grad()
            return own

        hooks.append(model.get_submodule(name).register_forward_hook(keep))
    logits = model(input_ids=tokens).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    ).backward()
    for hook in hooks:
        hook.remove()
    found = {}
    for axis, output in outputs.items():
        assert output.grad is not None
        found[axis] = output.grad.flatten(0, -2).square().mean(dim=0)
    return found


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_streamed_is_whole_model(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    opened = open_model(model)
    axes = [axis for axis in opened.structure.axes if axis.consumer.linear]
    if not axes:
        pytest.skip("all consumers are stacks of experts")
    way = Walk(opened.streamed(device="cpu"), tokens, batch=2)
    got = collect_gradients(way, axes, ["output_fisher"])
    expected = whole_model(model, tokens, {axis.name: axis.consumer.module for axis in axes})
    for axis in axes:
        torch.testing.assert_close(
            got[axis.name]["output_fisher"], expected[axis.name], rtol=2e-3, atol=1e-9
        )
