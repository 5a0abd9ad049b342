"""Normal matrices in fp32 against pure fp64, on inputs that are hard to add up."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.models import open_model
from secateur.stats import Walk
from secateur.structure import Plan
from secateur.surgery import Normal, Sums, refit, refit_on_held_out, sequential_repair
from secateur.surgery import surgeon as operating
from secateur.surgery.surgeon import TOLERANCE

WIDTH, OUTPUTS, TOKENS = 180, 6, 1500


def hostile(kind: str) -> Tensor:
    """Inputs [token, channel] in fp32, by what is wrong with them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator)
    mixed = inputs @ torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    if kind == "massive":  # one channel a thousand times the others, in some tokens
        mixed[::32, 5] = 1000 * (1 + mixed[::32, 5])
    elif kind == "means":  # a hundred times the deviations
        mixed += 100 * torch.randn(WIDTH, generator=generator)
    elif kind == "singular":  # a tenth of the channels all but depends on others
        mixed[:, :18] = mixed[:, 18:36] + 1e-2 * inputs[:, :18]
    elif kind == "sorted":  # the first batch says little of the others
        mixed += torch.linspace(-50, 50, TOKENS)[:, None]
    return mixed


def sums_of(inputs: Tensor, residual: Tensor, dtype: torch.dtype, batch: int = 200) -> Normal:
    sums = Sums(inputs.shape[1], residual.shape[1], dtype=dtype)
    for start in range(0, len(inputs), batch):
        sums.update(inputs[start : start + batch], residual[start : start + batch])
    return sums.normal()


def residual_of(inputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUTPUTS, WIDTH, generator=generator) / inputs.std(dim=0)
    noise = torch.randn(TOKENS, OUTPUTS, generator=generator)
    return 0.3 * (inputs - inputs.mean(dim=0)) @ weight.T + noise + 2


KINDS = ["plain", "massive", "means", "singular", "sorted"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_are_those_of_all_tokens_at_once(kind: str, dtype: torch.dtype) -> None:
    inputs = hostile(kind)
    residual = residual_of(inputs)
    normal = sums_of(inputs, residual, dtype)
    wide, left = inputs.double(), residual.double()
    size = wide.square().sum(dim=0).sqrt()
    rounding = 100 * torch.finfo(dtype).eps
    power = left.square().sum(dim=0).sqrt()
    centred = (wide - wide.mean(dim=0)).T @ (wide - wide.mean(dim=0))
    expected = {
        "inputs": (wide.T @ wide, torch.outer(size, size)),
        "spread": (centred, torch.outer(size, size)),
        "cross": (wide.T @ left, torch.outer(size, power)),
        "power": (size.square(), size.square()),
    }
    for name, (value, scale) in expected.items():
        assert ((getattr(normal, name).double() - value).abs() / scale).max() < rounding, name
    assert torch.equal(normal.spread, normal.spread.T)
    assert normal.square == pytest.approx(float(left.square().sum()), rel=1e-5)


@pytest.mark.parametrize("damping", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_that_of_fp64_or_doubted(kind: str, damping: float) -> None:
    """Where it is not doubted it is within the tolerance; and it is where nothing is wrong."""
    inputs = hostile(kind)
    residual = residual_of(inputs)
    exact = refit(sums_of(inputs, residual, torch.float64), damping)
    quick = refit(sums_of(inputs, residual, torch.float32), damping)
    difference = float((quick.change - exact.change).norm() / exact.change.norm())
    assert difference < TOLERANCE or quick.doubt > TOLERANCE
    assert exact.doubt < TOLERANCE
    assert kind == "sorted" or quick.doubt < 3 * TOLERANCE


def test_a_fit_without_damping_of_inputs_that_all_but_depend_on_others_is_doubted() -> None:
    inputs = hostile("singular")
    residual = residual_of(inputs)
    assert refit(sums_of(inputs, residual, torch.float32), 0.0).doubt > TOLERANCE
    assert refit(sums_of(inputs, residual, torch.float64), 0.0).doubt < TOLERANCE


@pytest.mark.parametrize(("precision", "bits"), [("high", 10), ("medium", 7)])
def test_products_that_torch_may_round_are_doubted_by_so_much(precision: str, bits: int) -> None:
    inputs = hostile("means")
    residual = residual_of(inputs)
    exact = sums_of(inputs, residual, torch.float32).noise
    torch.set_float32_matmul_precision(precision)
    try:
        rounded = sums_of(inputs, residual, torch.float32).noise
        double = sums_of(inputs, residual, torch.float64).noise
    finally:
        torch.set_float32_matmul_precision("highest")
    assert rounded / exact == pytest.approx(2.0 ** (23 - bits), rel=0.1)
    assert double < exact


def test_tokens_are_added_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = hostile("means")
    residual = residual_of(inputs)
    whole = sums_of(inputs, residual, torch.float64)
    monkeypatch.setattr("secateur.surgery.sums._TOKENS", 37)
    sums = Sums(WIDTH, OUTPUTS, dtype=torch.float64)
    sums.update(inputs, residual)
    assert len(sums._buffer) == 37
    parts = sums.normal()
    for name in ("mean", "left", "spread", "shared"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_damping_chosen_is_that_of_fp64(kind: str) -> None:
    inputs = hostile(kind)
    residual = residual_of(inputs)
    found = [
        refit_on_held_out(
            sums_of(inputs[:1200], residual[:1200], dtype),
            sums_of(inputs[1200:], residual[1200:], dtype),
        )
        for dtype in (torch.float32, torch.float64)
    ]
    assert found[0].damping == found[1].damping
    assert torch.allclose(found[0].change, found[1].change, rtol=1e-2, atol=1e-5)


def test_the_error_is_that_of_the_tokens() -> None:
    inputs = hostile("means")
    residual = residual_of(inputs)
    change, added = 0.01 * torch.randn(OUTPUTS, WIDTH).double(), torch.randn(OUTPUTS).double()
    normal = sums_of(inputs, residual, torch.float64)
    for moved, shift in ((change, added), (change, None), (None, added), (None, None)):
        left = residual.double()
        left = left if moved is None else left - inputs.double() @ moved.T
        left = left if shift is None else left - shift
        assert normal.error(moved, shift) == pytest.approx(float(left.square().sum()), rel=1e-9)


def twins() -> Any:
    """A model where two channels of every MLP give nearly the same."""
    model = tiny_model("llama-gqa")
    for layer in model.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight.data[1] = linear.weight.data[0] * (1 + 1e-3)
    return model


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_what_is_doubted_is_added_up_again_in_fp64(
    damping: float, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(twins())
    structure = opened.structure
    plan = Plan({"layers.2.mlp": tuple(range(40))}, structure.architecture, structure.weights)
    asked: list[torch.dtype] = []

    def spied(tokens: int, dtype: torch.dtype, **options: Any) -> Sums:
        asked.append(dtype)
        return Sums(**options, dtype=dtype)

    def repaired() -> Any:
        walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
        return sequential_repair(walk, structure, plan, damping=damping)

    monkeypatch.setattr(operating, "gathering", spied)
    found = repaired()
    assert (torch.float64 in asked) == (damping == 0)
    monkeypatch.setattr(operating, "TOLERANCE", -1.0)  # of everything
    name = "model.layers.2.mlp.down_proj.weight"
    exact = repaired().tensors[name]
    assert (found.tensors[name] - exact).norm() < TOLERANCE * exact.norm()
