"""What passes a linear tells the signed sums of its weight, whatever is done to it afterwards."""

import torch

from secateur.stats.finite import Finite
from secateur.stats.linears import Linear, watched
from secateur.stats.products import Weight
from secateur.stats.taylor import Taylor
from secateur.structure import Axis, Blocks, Member

UNITS, FAN, WINDOWS, TOKENS = 6, 4, 3, 5


def test_an_output_that_is_changed_in_place_is_told_as_it_was() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(FAN, UNITS).requires_grad_(False)
    member = Member("up", "weight", (0,), Blocks(0, 1, 1), "producer")
    axis = Axis("layers.0.mlp", 0, "mlp", "channel", UNITS, 1, "I", (member,))
    taylor = Taylor(axis, ["samples_vector"], WINDOWS, torch.device("cpu"))
    weight = Weight(linear.weight, [(taylor, member)], 1.0, WINDOWS)
    inputs, by_output = torch.randn(WINDOWS, TOKENS, FAN), torch.randn(WINDOWS, TOKENS, UNITS)
    leaf = inputs.clone().requires_grad_()
    with watched([Linear(linear, weight, None)], WINDOWS, Finite(), check=True) as plain:
        output = linear(leaf)
        output.add_(1)
        assert plain()
        output.backward(by_output)
    taylor.end_windows()
    gradients = by_output.mT @ inputs
    expected = (gradients * linear.weight).sum(dim=2).abs()
    torch.testing.assert_close(taylor.finished()["samples_vector"], expected)
