"""Sums of products of a weight and its gradients against the definitions in fp64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.stats import blocks
from secateur.stats.finite import Finite
from secateur.stats.products import Weight
from secateur.stats.taylor import Taylor
from secateur.structure import Axis, Blocks, Member

UNITS, WIDTH, FAN, WINDOWS = 5, 3, 7, 4
SCALE = 1 / 16
NEEDS = [f"{m}_{t}" for m in ("batch", "per_sample") for t in ("first", "second", "mixed")]


def axis(member: Member) -> Axis:
    return Axis("layers.0.mlp", 0, "mlp", "channel", UNITS, 1, "I", (member,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("values", [1, 40, 2**18])
def test_sums_equal_the_definitions_whatever_the_blocks(
    values: int, dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_VALUES", values)
    generator = torch.Generator().manual_seed(0)
    shape = (UNITS * WIDTH, FAN) if dim == 0 else (FAN, UNITS * WIDTH)
    weight = torch.randn(shape, generator=generator).to(dtype)
    gradients = torch.randn(WINDOWS, *shape, generator=generator).to(dtype)
    member = Member("layers.0.up", "weight", (dim,), Blocks(0, WIDTH, WIDTH), "producer")
    taylor = Taylor(axis(member), NEEDS, WINDOWS, torch.device("cpu"))
    made = Weight(torch.nn.Parameter(weight), [(taylor, member)], SCALE, WINDOWS)
    for piece in gradients.clone().split(2):
        made.add(iter(piece.split(1)), Finite())
        taylor.end_windows()
    made.end()

    p = weight.double() * gradients.double() * SCALE
    s = p.square()

    def channels(term: Tensor) -> Tensor:
        return term.movedim(dim, 0).reshape(1, UNITS, WIDTH, FAN).sum(-1)

    expected = {
        "batch_first": channels(p.mean(0).abs()),
        "batch_second": channels(s.mean(0)),
        "batch_mixed": channels((p.mean(0) - s.mean(0) / 2).abs()),
        "per_sample_first": channels(p.abs().mean(0)),
        "per_sample_second": channels(s.mean(0)),
        "per_sample_mixed": channels((p - s / 2).abs().mean(0)),
    }
    found = taylor.finished()
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name].double(), wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dims", [(0, 1), (0, 2), (0,), (2,)])
@pytest.mark.parametrize("values", [1, 40, 1300, 2**18])
def test_stacks_of_matrices_go_by_rows_of_one(
    values: int, dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that share a tensor: channels of each, whole experts, channels of all."""
    monkeypatch.setattr(blocks, "_VALUES", values)
    shape = (UNITS, WIDTH * UNITS, UNITS * 2)
    generator = torch.Generator().manual_seed(0)
    weight, gradients = (torch.randn(*n, *shape, generator=generator) for n in ((), (WINDOWS,)))
    size = math.prod(shape[dim] for dim in dims)
    member = Member(
        "layers.0.experts", "up", dims, Blocks(0, size // UNITS, size // UNITS), "producer"
    )
    taylor = Taylor(axis(member), NEEDS, WINDOWS, torch.device("cpu"))
    made = Weight(torch.nn.Parameter(weight), [(taylor, member)], SCALE, WINDOWS)
    made.add([gradients.clone()], Finite())
    taylor.end_windows()
    made.end()
    p = weight.double() * gradients.double() * SCALE
    others = [dim for dim in range(3) if dim not in dims]
    expected = {
        "per_sample_first": p.abs().mean(0).sum(dim=others),
        "batch_first": p.mean(0).abs().sum(dim=others),
        "batch_mixed": (p.mean(0) - p.square().mean(0) / 2).abs().sum(dim=others),
    }
    found = taylor.finished()
    for name, wanted in expected.items():
        got = found[name].double().flatten()
        torch.testing.assert_close(got, wanted.flatten(), rtol=2e-6, atol=1e-6)


def test_members_of_two_axes_each_get_their_slice() -> None:
    weight = torch.arange(1.0, 1 + UNITS * WIDTH * 2).view(UNITS * WIDTH * 2, 1)
    one = Member("layers.0.qkv", "weight", (0,), Blocks(0, WIDTH, WIDTH), "producer")
    other = replace(one, blocks=Blocks(UNITS * WIDTH, WIDTH, WIDTH))
    taylors = [Taylor(axis(m), ["batch_first"], 1, torch.device("cpu")) for m in (one, other)]
    owners = list(zip(taylors, (one, other), strict=True))
    made = Weight(torch.nn.Parameter(weight), owners, 1.0, 1)
    made.add([torch.ones(1, *weight.shape)], Finite())
    made.end()
    for taylor in taylors:
        taylor.end_windows()
    found = torch.cat([taylor.finished()["batch_first"].flatten() for taylor in taylors])
    assert torch.equal(found, weight.flatten())
