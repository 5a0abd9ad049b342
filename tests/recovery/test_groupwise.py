"""Laws of few-bit weights: the grid, the packing, the adapter on the zero points."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.checkpoint import Packed, packed, unpacked
from secateur.modeling_secateur import PackedLinear
from secateur.modeling_secateur import unpacked as unpacked_alone
from secateur.recovery import GRIDS, GroupwiseLinear, Quantised, quantised

BITS = list(range(2, 9))
# rows, columns, group: a ragged last group, groups of one, one group of all
SHAPES = [(5, 64, 16), (7, 50, 16), (3, 33, 32), (4, 9, 1), (4, 9, 20)]


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def steps(found: Quantised) -> Tensor:
    """alpha of every weight."""
    return found.scales.repeat_interleave(found.group, dim=1)[:, : found.codes.shape[1]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_weight_moves_by_more_than_half_a_step(bits: int, shape: tuple[int, int, int]) -> None:
    rows, columns, group = shape
    dense = weight(rows, columns)
    found = quantised(dense, bits, group)
    assert found.codes.max() <= 2**bits - 1
    assert ((dense - found.weight).abs() <= steps(found) / 2 + 1e-6).all()


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_quantising_twice_changes_nothing(bits: int, storage: torch.dtype) -> None:
    once = quantised(weight(6, 50), bits, 16, storage=storage)
    twice = quantised(once.weight, bits, 16, storage=storage)
    assert torch.equal(once.codes, twice.codes)
    assert torch.allclose(once.weight, twice.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_equal_weights_are_exact(grid: str) -> None:
    dense = torch.tensor([0.0, 0.3, -1.7])[:, None].expand(3, 20)
    found = quantised(dense, 4, 8, grid=grid)
    assert torch.equal(found.weight, dense)
    assert torch.equal(quantised(weight(4, 9), 4, 1, grid=grid).weight, weight(4, 9))


@pytest.mark.parametrize("bits", BITS)
def test_the_least_squares_grid_is_never_worse_and_mostly_better(bits: int) -> None:
    dense = weight(40, 64) ** 3

    def error(grid: str) -> Tensor:
        found = quantised(dense, bits, 16, grid=grid)
        return (found.weight - dense).square().unflatten(1, (-1, 16)).sum(dim=2)

    plain, better = error("min-max"), error("least-squares")
    assert (better <= plain + 1e-9).all()
    assert better.sum() < (0.98 if bits > 6 else 0.9) * plain.sum()


@pytest.mark.parametrize(("bits", "width"), list(itertools.product(BITS, (1, 7, 8, 33))))
def test_codes_survive_packing_and_both_ways_of_unpacking(bits: int, width: int) -> None:
    codes = torch.randint(
        0, 2**bits, (5, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits)
    )
    small = packed(codes, bits)
    assert small.shape == (5, -(-width * bits // 8))
    assert torch.equal(unpacked(small, bits, width), codes)
    assert torch.equal(unpacked_alone(small, bits, width), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packed_linear_computes_with_the_weight_that_it_stands_for(dtype: torch.dtype) -> None:
    found = quantised(weight(6, 50), 4, 16, storage=torch.float16)
    small = Packed.of(found.codes, found.scales, found.zeros, 4, 16)
    assert torch.equal(small.weight(torch.float32), found.weight)
    linear = PackedLinear(50, 6, 4, 16, bias=torch.arange(6.0))
    linear.load_state_dict(small.tensors, strict=False)
    inputs = weight(3, 50, seed=1).to(dtype)
    expected = nn.functional.linear(inputs.float(), found.weight, torch.arange(6.0))
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    assert torch.allclose(linear.to(dtype)(inputs).float(), expected, **near)


def adapted(shape: tuple[int, int, int] = (7, 50, 16), bits: int = 4, **changes: Any) -> Any:
    rows, columns, group = shape
    settings = {"rank": 3, "alpha": 5.0, "generator": torch.Generator().manual_seed(0), **changes}
    found = quantised(weight(rows, columns), bits, group)
    return GroupwiseLinear(found, nn.Parameter(torch.ones(rows)), **settings), found


@pytest.mark.parametrize("shape", SHAPES)
def test_before_training_it_is_the_quantised_linear(shape: tuple[int, int, int]) -> None:
    linear, found = adapted(shape)
    inputs = weight(4, shape[1], seed=1)
    expected = nn.functional.linear(inputs, found.weight, torch.ones(shape[0]))
    assert torch.equal(linear(inputs), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_merged_equals_unmerged_with_the_same_codes(bits: int, shape: tuple[int, int, int]) -> None:
    linear, found = adapted(shape, bits)
    linear.lora_b.data = weight(shape[0], 3, seed=2)
    merged = linear.quantised(merged=True)
    assert torch.equal(merged.codes, found.codes)
    assert torch.equal(merged.scales, found.scales)
    inputs = weight(4, shape[1], seed=1)
    expected = nn.functional.linear(inputs, merged.weight, torch.ones(shape[0]))
    assert torch.allclose(linear(inputs), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(merged.zeros, found.zeros)


def test_groups_of_one_that_are_exact_give_lora() -> None:
    linear, _ = adapted((7, 12, 1))
    linear.lora_b.data = weight(7, 3, seed=2)
    dense = weight(7, 12) + 5.0 / 3 * linear.lora_b.detach() @ linear.lora_a.detach()
    inputs = weight(4, 12, seed=1)
    expected = nn.functional.linear(inputs, dense, torch.ones(7))
    assert torch.allclose(linear(inputs), expected, atol=1e-5)


def test_gradients_reach_the_adapter_and_the_inputs_alone() -> None:
    """And they are those of the same linear with a floating-point weight."""
    linear, found = adapted()
    linear.bias.requires_grad_(False)
    linear.lora_b.data = weight(7, 3, seed=2)
    inputs, other = (weight(4, 50, seed=1).requires_grad_() for _ in range(2))
    linear(inputs).square().sum().backward()
    a, b = (p.detach().clone().requires_grad_() for p in (linear.lora_a, linear.lora_b))
    output = other @ found.weight.T + torch.ones(7)
    output = output + 5.0 / 3 * (linear.pooled(other) @ a.T) @ b.T
    output.square().sum().backward()
    for ours, expected in ((inputs, other), (linear.lora_a, a), (linear.lora_b, b)):
        assert torch.allclose(ours.grad, expected.grad, rtol=1e-4, atol=1e-4)
    trained = {name for name, p in linear.named_parameters() if p.requires_grad}
    assert trained == {"lora_a", "lora_b"}
