"""What ranks have seen of parts, merged, is what one has seen of all."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_ranks import side_by_side

from conftest import tiny_model
from secateur.checkpoint import Kept, Store
from secateur.errors import SecateurError
from secateur.evaluation import divergences, last_states, perplexities
from secateur.models import open_model
from secateur.pipeline import candidates
from secateur.pipeline.gated import gated_divergence
from secateur.pipeline.probing import masked_losses
from secateur.progress import telling
from secateur.ranks import ALONE, Ranks, by_first, this
from secateur.stats import Walk, collect, collect_gradients
from secateur.stats.collect import ACCUMULATORS, STATISTICS
from secateur.stats.finite import Finite
from secateur.stats.gradients import GRADIENTS
from secateur.surgery import Rows, Sums, refit
from secateur.surgery.one_shot import FITTED_BY

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


@pytest.mark.parametrize("lengths", [(4, 9, 1), (0, 6, 3)])
def test_rows_of_all_ranks_fit_to_the_bit_what_those_of_one_do(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    count, inputs = sum(lengths), 30
    given = torch.randn(count, inputs), torch.randn(count, 3), torch.rand(count)
    parts = list(zip(*(own.split(list(lengths)) for own in given), strict=True))

    def seen(*part: Any) -> Rows:
        rows = Rows(inputs, 3, dtype=torch.float32)
        rows.update(*part)
        return rows

    whole = refit(seen(*given).normal(), 0.1)
    for found in side_by_side(len(lengths), lambda: seen(*parts[this().index]).of_all(this())):
        merged = refit(found.normal(), 0.1)
        assert torch.equal(merged.change, whole.change)
        assert torch.equal(merged.added, whole.added)


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


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_is_asked_of_choices_of_units_is_the_same(ranks: int) -> None:
    """Probes and candidates, fewer and more than ranks; divergence and perplexity by windows."""
    torch.manual_seed(1)
    tokens, asking = torch.randint(3, 60, (7, 9)), torch.randint(3, 60, (1, 9))
    models = [open_model(tiny_model()).streamed() for _ in range(ranks)]
    others = [open_model(tiny_model(seed=1)).streamed() for _ in range(ranks)]
    axes = open_model(tiny_model()).structure.axes
    statistics = collect(Walk(models[0], tokens, batch=3), axes, FITTED_BY)
    masks = {axis: torch.rand(4, axis.units) < 0.4 for axis in axes}
    gone = [
        {axis: tuple(mask[row].nonzero().flatten().tolist()) for axis, mask in masks.items()}
        for row in range(4)
    ]
    gates = {axis: torch.rand(axis.units) for axis in axes}

    def found() -> list[torch.Tensor]:
        own, other = models[this().index], others[this().index]
        walk, few = (Walk(own, some, batch=3) for some in (tokens, asking))
        shared = walk.shared()
        (dense,) = last_states([shared], [Kept()], "dense")
        value, slopes = gated_divergence(shared, dense, gates, statistics)
        one = {axis: mask[:1] for axis, mask in masks.items()}
        return [
            masked_losses(few, masks),
            masked_losses(walk, one),
            candidates.divergences(few, gone, statistics),
            candidates.divergences(walk, gone[:1], statistics),
            torch.tensor(list(divergences(own, [other], tokens, batch=2))),
            torch.tensor([one.value for one in perplexities(own, [tokens, asking], [2, 2])]),
            torch.tensor(value),
            *slopes.values(),
        ]

    whole = found()
    for merged in side_by_side(ranks, found):
        for one, other in zip(merged, whole, strict=True):
            assert torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-6)


def test_one_rank_s_infinity_is_an_error_on_all() -> None:
    def seen() -> str:
        finite = Finite(this())
        finite.see("the output of layer 3", torch.tensor([math.inf if this().index else 1.0]))
        with pytest.raises(SecateurError) as error:
            finite.check()
        return str(error.value)

    said = side_by_side(2, seen)
    assert said[0] == said[1]
    assert said[0].startswith("NaN or infinity in the output of layer 3")


def test_what_the_first_rank_refuses_all_refuse() -> None:
    class Refusing(contextlib.AbstractContextManager[None]):
        def __enter__(self) -> None:
            raise SecateurError("No.")

        def __exit__(self, *_: object) -> None:
            return None

    def entered() -> str:
        with pytest.raises(SecateurError) as error, by_first("it", Refusing):
            pass
        return str(error.value)

    assert side_by_side(3, entered) == ["No."] * 3


@pytest.mark.parametrize("apart", [False, True], ids=["one disk", "a disk each"])
def test_ranks_take_what_all_of_them_see_of_a_store(apart: bool, tmp_path: Path) -> None:
    tokens = torch.randint(3, 60, (5, 9), generator=torch.Generator().manual_seed(1))
    tiny_model().save_pretrained(tmp_path / "model")
    models = [open_model(tmp_path / "model").streamed() for _ in range(2)]
    axes = open_model(tmp_path / "model").structure.axes
    places = [tmp_path / ("other" if apart and index else "store") for index in range(2)]

    def found() -> tuple[Any, list[str]]:
        with telling() as told, Store(places[this().index]) as store:
            walk = Walk(models[this().index], tokens, batch=2, store=store)
            tally = collect(walk, axes, ["input_mean", "input_gram"])[axes[0].name]
            return (tally["input_mean"], tally["input_gram"]), told.notes

    first, again = side_by_side(2, found), side_by_side(2, found)
    for (tensors, _), (others, notes) in zip(first, again, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(tensors, others, strict=True))
        assert any("not all ranks see" in note for note in notes) == apart
    assert any("as an earlier run found it" in note for note in again[0][1])
    assert not (tmp_path / "other").exists(), "one rank writes"
    assert len(Store(tmp_path / "store").passes()) == 1
    alone, notes = found()
    assert any("as an earlier run found it" in note for note in notes)
    assert all(torch.equal(one, other) for one, other in zip(alone, first[0][0], strict=True))


def test_one_alone_does_all_itself() -> None:
    assert this() is ALONE
    assert not ALONE.several
    assert ALONE.first
    tensor = torch.ones(2)
    assert ALONE.summed("", [tensor])[0] is tensor
    assert ALONE.gathered("", tensor) is tensor
    assert ALONE.each("", 3) == [3]
    assert ALONE.told("", lambda: 4) == 4
