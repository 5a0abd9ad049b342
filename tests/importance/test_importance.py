"""Laws that every score keeps, whoever wrote it."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.errors import SecateurError
from secateur.importance import (
    IMPORTANCE,
    MATRICES,
    REDUCTIONS,
    Importance,
    gradients_needed,
    score,
)
from secateur.models import open_model
from secateur.stats import GRADIENTS
from secateur.structure import Axis

SCORES = list(IMPORTANCE)
GATES = ("gate_fisher", "gate_entropy")
OF_UNITS = [name for name in GRADIENTS if name not in ("output_fisher", *GATES)]
DETERMINISTIC = [name for name in SCORES if "generator" not in IMPORTANCE[name].needs]


def axis_of(kind: str) -> Axis:
    return next(a for a in open_model(tiny_model()).structure.axes if a.kind == kind)


def ingredients(axis: Axis, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    width = axis.units * axis.consumer.blocks.width
    X = torch.randn(200, width, generator=generator) * torch.rand(width, generator=generator)
    weight = torch.randn(48, width, generator=generator)
    terms = torch.rand(4, axis.units, 5, generator=generator)
    return weight, {
        **{name: terms[:, :, 0] if "samples" in name else terms for name in OF_UNITS},
        **{name: torch.rand(axis.units, generator=generator) for name in GATES},
        "output_fisher": torch.randn(48, 90, generator=generator).cov(),
        "input_mean": X.mean(0),
        "input_var": X.var(0),
        "input_norm": X.square().mean(0).sqrt(),
        "input_gram": X.T @ X,
        "input_spread": X.T.cov(),
    }


def permuted(axis: Axis, statistics: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The statistics of the axis with its units in another order."""
    columns = axis.consumer.blocks.indices(order).flatten()
    found = {name: value[:, order] for name, value in statistics.items() if name in OF_UNITS}
    found |= {name: statistics[name][order] for name in GATES}
    for name in ("input_mean", "input_var", "input_norm"):
        found[name] = statistics[name][columns]
    for name in MATRICES:
        found[name] = statistics[name][columns][:, columns]
    return {**found, "output_fisher": statistics["output_fisher"]}


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("name", SCORES)
def test_one_finite_non_negative_value_a_unit_or_channel(name: str, kind: str) -> None:
    axis = axis_of(kind)
    weight, statistics = ingredients(axis)
    value = score(IMPORTANCE[name], axis, weight, statistics, seed=0)
    assert value.shape in ((axis.units, 1), (axis.units, axis.consumer.blocks.width))
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_permuting_units_permutes_scores(name: str) -> None:
    axis = axis_of("attention")
    weight, statistics = ingredients(axis)
    order = torch.tensor([2, 0, 1])
    columns = axis.consumer.blocks.indices(order).flatten()
    shuffled = permuted(axis, statistics, order)
    plain = score(IMPORTANCE[name], axis, weight, statistics, seed=0)
    moved = score(IMPORTANCE[name], axis, weight[:, columns], shuffled, seed=0)
    assert torch.allclose(moved, plain[order], rtol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_the_sign_of_a_unit_does_not_matter(name: str) -> None:
    axis = axis_of("mlp")
    weight, statistics = ingredients(axis)
    plain = score(IMPORTANCE[name], axis, weight, statistics, seed=0)
    assert torch.equal(score(IMPORTANCE[name], axis, -weight, statistics, seed=0), plain)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_unit_that_does_nothing_scores_lowest(name: str) -> None:
    axis = axis_of("mlp")
    weight, statistics = ingredients(axis)
    weight[:, 7] = 0
    statistics["input_var"][7] = 0
    for term in OF_UNITS:
        statistics[term][:, 7] = 0
    for term in GATES:
        statistics[term][7] = 0
    value = score(IMPORTANCE[name], axis, weight, statistics, seed=0).sum(1)
    assert value.argmin() == 7
    assert value[7] == 0


def test_random_follows_its_seed_and_differs_between_layers() -> None:
    axes = open_model(tiny_model()).structure.axes
    draws = [
        score(IMPORTANCE["random"], axis, torch.zeros(48, 56), {}, seed=seed)
        for axis in (axes[1], axes[3])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_a_scores_parameters_are_the_statistics_to_collect() -> None:
    assert IMPORTANCE["wifv"].statistics == ("input_var",)
    assert IMPORTANCE["wanda-sp"].statistics == ("input_norm",)
    assert IMPORTANCE["magnitude-l1"].statistics == ()
    assert IMPORTANCE["taylor-first"].statistics == ()
    assert gradients_needed(IMPORTANCE["taylor-first"]) == ("batch_first",)
    assert gradients_needed(IMPORTANCE["wifv"]) == ()


def test_an_unknown_reduction_of_members_is_told_the_known_ones() -> None:
    axis = axis_of("mlp")
    with pytest.raises(SecateurError, match=r"'summ'\. Did you mean 'sum'"):
        score(IMPORTANCE["taylor-first"], axis, None, ingredients(axis)[1], seed=0, members="summ")


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_one_member_alone_is_itself(name: str) -> None:
    terms = torch.rand(1, 3, 5)
    assert torch.equal(REDUCTIONS[name](terms), terms[0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda weight: torch.zeros(2), r"returned shape \[2, 1\].*expected \[56\]"),
        (lambda weight: torch.full((56,), torch.nan), "NaN or infinite on layers.0.mlp"),
        (lambda gradient: torch.zeros(56), "asks for 'gradient'; known are weight"),
    ],
)
def test_a_wrong_score_is_told_what_was_expected(function: Any, message: str) -> None:
    axis = axis_of("mlp")
    wrong = Importance("mine", function, "", tuple(inspect.signature(function).parameters))
    with pytest.raises(SecateurError, match=message):
        score(wrong, axis, torch.ones(48, 56), {}, seed=0)
