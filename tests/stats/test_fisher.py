"""What an error at a consumer's output costs: by the streamed pass, and by the whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EVERY_FAMILY_SLOWLY, tiny_model
from secateur.models import open_model
from secateur.stats import Walk, collect_gradients


def whole_model(model: Any, tokens: Tensor, consumers: dict[str, str]) -> dict[str, Tensor]:
    """Products of the gradients by the outputs of some modules, a mean over tokens, by autograd."""
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
        rows = output.grad.flatten(0, -2)
        found[axis] = rows.T @ rows / len(rows)
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
        own, other = got[axis.name]["output_fisher"], expected[axis.name]
        torch.testing.assert_close(
            own, other, rtol=2e-3, atol=1e-4 * float(other.diagonal().mean())
        )
