"""What passes a linear tells the signed sums of its weight, whatever is done to it afterwards."""

from typing import Any

import pytest
import torch

from conftest import tiny_model
from secateur.models import open_model
from secateur.stats import Walk, collect_gradients
from secateur.stats.finite import Finite
from secateur.stats.linears import Linear, tapped
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
    with tapped([Linear(linear, weight, None)], (WINDOWS, TOKENS), Finite(), check=True) as plain:
        output = linear(leaf)
        output.add_(1)
        assert plain()
        output.backward(by_output)
    taylor.end_windows()
    gradients = by_output.mT @ inputs
    expected = (gradients * linear.weight).sum(dim=2).abs()
    torch.testing.assert_close(taylor.finished()["samples_vector"], expected)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_linear_that_is_not_called_once_is_not_plain(calls: int) -> None:
    linear = torch.nn.Linear(FAN, FAN).requires_grad_(False)
    hidden = torch.randn(WINDOWS, TOKENS, FAN)
    with tapped([Linear(linear, None, None)], (WINDOWS, TOKENS), Finite(), check=True) as plain:
        for _ in range(calls):
            hidden = linear(hidden.requires_grad_())
        assert plain() == (calls == 1)


@pytest.mark.parametrize("tokens", [WINDOWS * TOKENS, WINDOWS, 2 * WINDOWS])
def test_a_linear_that_is_given_some_of_the_tokens_is_not_plain(tokens: int) -> None:
    """An expert, though its tokens may divide by the windows."""
    linear = torch.nn.Linear(FAN, FAN).requires_grad_(False)
    hidden = torch.randn(WINDOWS * TOKENS, FAN).requires_grad_()
    with tapped([Linear(linear, None, None)], (WINDOWS, TOKENS), Finite(), check=True) as plain:
        linear(hidden[:tokens])
        assert plain() == (tokens == len(hidden))


@pytest.mark.parametrize(("at_once", "expected"), [(1, 1), (2, 2), (100, 4)])
def test_a_bounded_number_of_tokens_goes_down_at_once(
    at_once: int, expected: int, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(chosen: Any, shape: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
        seen.append(shape[0])
        return tapped(chosen, shape, *args, **kwargs)

    monkeypatch.setattr("secateur.stats.gradients.tapped", counted)
    monkeypatch.setattr("secateur.stats.gradients._TOKENS", at_once * tokens.shape[1])
    opened = open_model(tiny_model())
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    collect_gradients(walk, opened.structure.axes, ["per_sample_first"])
    assert max(seen) == expected
