"""What ranks have seen of parts, merged, is what one has seen of all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from thread_ranks import side_by_side

from conftest import tiny_model
from secateur.models import open_model
from secateur.ranks import ALONE, Ranks, this
from secateur.stats import Walk, collect, collect_gradients
from secateur.stats.collect import ACCUMULATORS, STATISTICS
from secateur.stats.gradients import GRADIENTS
from secateur.surgery.normal import Sums

CHANNELS = 5


def test_shares_are_all_windows_in_order() -> None:
    for windows, count in ((7, 2), (7, 3), (3, 3), (2, 5), (0, 2)):
        parts = [Ranks(index, count).share(windows) for index in range(count)]
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(windows))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("lengths", [(4, 9, 1), (0, 6, 3), (5, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("holder", sorted(ACCUMULATORS))
def test_merged_accumulators_are_that_of_all(holder: str, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # a mean that is large beside the deviations: naive sums would lose these
    tokens = torch.randn(sum(lengths), CHANNELS) + 30 * torch.arange(CHANNELS)
    weights = torch.rand(len(tokens)) + 0.1
    parts = list(zip(tokens.split(list(lengths)), weights.split(list(lengths)), strict=True))

    def seen(inputs: Any, own: Any) -> Any:
        accumulator = ACCUMULATORS[holder].empty(CHANNELS)
        given = (own,) if holder == "spread" else ()
        for some in inputs.split(3):
            at = slice(0, len(some))
            accumulator.update(some, *(one[at] for one in given))
            given = tuple(one[len(some) :] for one in given)
        return accumulator

    whole = seen(tokens, weights)
    merged = side_by_side(len(lengths), lambda: seen(*parts[this().index]).of_all(this()))
    for one in merged:
        for of, read in STATISTICS.values():
            if of == holder:
                assert torch.allclose(read(one).float(), read(whole).float(), atol=1e-4, rtol=1e-5)
        for name, tensor in one.state().items():
            assert torch.equal(tensor, merged[0].state()[name]), "the same bits on every rank"


@pytest.mark.parametrize("lengths", [(4, 9, 1), (0, 6, 3), (0, 0, 0)])
def test_merged_normal_matrices_are_those_of_all(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(sum(lengths), CHANNELS) + 3 * torch.arange(CHANNELS)
    left, weights = torch.randn(len(inputs), 3), torch.rand(len(inputs)) + 0.1
    given = inputs, left, weights
    parts = list(zip(*(own.split(list(lengths)) for own in given), strict=True))

    def seen(*part: Any) -> Sums:
        sums = Sums(CHANNELS, 3, dtype=torch.float64)
        sums.update(*(one.double() for one in part))
        return sums

    whole = seen(*given).normal()
    for found in side_by_side(len(lengths), lambda: seen(*parts[this().index]).of_all(this())):
        merged = found.normal()
        for name in ("mean", "left", "spread", "shared"):
            assert torch.allclose(getattr(merged, name), getattr(whole, name), atol=1e-8), name
        assert merged.count == pytest.approx(whole.count)
        assert merged.square == pytest.approx(whole.square)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [(collect, sorted(STATISTICS)), (collect_gradients, sorted(GRADIENTS))],
    ids=["statistics", "gradients"],
)
@pytest.mark.parametrize("variant", ["llama-gqa", "mixtral"])
def test_statistics_of_shared_windows_are_those_of_all(
    kind: Callable[..., Any], needs: list[str], variant: str
) -> None:
    torch.manual_seed(1)
    tokens = torch.randint(3, 60, (7, 9))
    opened = open_model(tiny_model(variant))
    axes = opened.structure.axes
    if variant == "mixtral":  # what passes experts has no weights
        needs = [need for need in needs if need != "input_spread"]
        axes = [axis for axis in axes if not axis.consumer.linear]

    models = [open_model(tiny_model(variant)).streamed() for _ in range(3)]

    def found() -> Any:
        walk = Walk(models[this().index], tokens, batch=3)
        return kind(walk, axes, needs, **({"seed": 5} if kind is collect_gradients else {}))

    whole = found()
    for merged in side_by_side(3, found):
        for axis in axes:
            for need in needs:
                one, other = merged[axis.name][need], whole[axis.name][need]
                size = float(other.abs().max())
                assert torch.allclose(one, other, atol=1e-5 * size, rtol=1e-4), (axis.name, need)


def test_one_alone_does_all_itself() -> None:
    assert this() is ALONE
    assert not ALONE.several
    assert ALONE.first
    tensor = torch.ones(2)
    assert ALONE.summed("", [tensor])[0] is tensor
    assert ALONE.gathered("", tensor) is tensor
    assert ALONE.each("", 3) == [3]
    assert ALONE.told("", lambda: 4) == 4
