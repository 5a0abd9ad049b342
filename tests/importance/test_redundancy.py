"""Scores that see what units have in common, against least squares and cuts done by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.importance import IMPORTANCE, score
from secateur.importance import obs as module
from secateur.importance.obs import obs, obs_loss
from secateur.importance.redundancy import greedy
from secateur.models import open_model

TOKENS, FAN = 400, 6


def some(units: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [token, channel] that depend on one another and have means, and a weight."""
    generator = torch.Generator().manual_seed(seed)
    channels = units * width
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(TOKENS, channels, generator=generator, dtype=torch.float64)
    inputs = noise @ (mix + 2 * torch.eye(channels)) + 3
    weight = torch.randn(units, width, FAN, generator=generator, dtype=torch.float64)
    return inputs, weight


def of_inputs(inputs: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    return {
        "input_gram": inputs.T @ inputs,
        "input_mean": inputs.mean(dim=0).view(shape[:2]),
        "input_var": inputs.var(dim=0, correction=0).view(shape[:2]),
    }


def some_fisher(rank: int = FAN) -> Tensor:
    """A Fisher information by outputs that depend on one another; below FAN, a singular one."""
    generator = torch.Generator().manual_seed(5)
    factors = torch.randn(FAN, rank, generator=generator, dtype=torch.float64)
    return factors @ factors.T


def fitted_error(
    inputs: Tensor, weight: Tensor, gone: list[int], fisher: Tensor | None = None
) -> float:
    """What is left of the output when the units that stay, and a bias, are fitted to all of it.

    A sum over tokens of e^T F e, F the identity where no other is given.
    """
    units, width, fan = weight.shape
    stays = torch.ones(units, dtype=torch.bool)
    stays[gone] = False
    output = inputs @ weight.reshape(-1, fan)
    rest = inputs.view(-1, units, width)[:, stays].flatten(1)
    design = torch.cat([rest, torch.ones(len(rest), 1, dtype=rest.dtype)], dim=1)
    left = output - design @ torch.linalg.lstsq(design, output).solution
    return float(left.square().sum() if fisher is None else ((left @ fisher) * left).sum())


@pytest.mark.parametrize(("units", "width"), [(12, 1), (5, 3)])
def test_a_unit_costs_what_a_fit_to_what_stays_cannot_make_good(
    units: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit by unit: the cheapest at every turn, at what it adds to what least squares leaves."""
    monkeypatch.setattr(module, "DAMPING", 1e-12)
    monkeypatch.setattr(module, "ROUNDS", units)
    inputs, weight = some(units, width)
    costs = obs(weight, **of_inputs(inputs, weight.shape)).double()
    order = costs.argsort().tolist()
    total, floor = 0.0, 0.0
    for count in range(1, units):
        gone = order[:count]
        error = fitted_error(inputs, weight, gone)
        floor = max(floor, error - total)
        assert float(costs[gone[-1]]) == pytest.approx(floor, rel=1e-4)
        others = [fitted_error(inputs, weight, [*gone[:-1], u]) for u in order[count:]]
        assert error <= min(others) * (1 + 1e-6)
        total = error


@pytest.mark.parametrize("rank", [FAN, 2])
@pytest.mark.parametrize(("units", "width"), [(12, 1), (5, 3)])
def test_costs_in_loss_are_errors_weighed_by_the_fisher_information_a_mean_over_tokens(
    units: int, width: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to go: half of what the Fisher information makes of what the fit leaves."""
    monkeypatch.setattr(module, "DAMPING", 1e-12)
    inputs, weight = some(units, width)
    fisher = some_fisher(rank)
    costs = obs_loss(weight, inputs.T.cov(correction=0), fisher).double()
    errors = [fitted_error(inputs, weight, [unit], fisher) for unit in range(units)]
    expected = torch.tensor(errors, dtype=torch.float64) / (2 * TOKENS)
    assert int(costs.argmin()) == int(expected.argmin())
    assert float(costs.min()) == pytest.approx(float(expected.min()), rel=1e-4)


@pytest.mark.parametrize("rank", [FAN, 2])
def test_costs_are_in_the_units_of_the_loss(rank: int) -> None:
    """However small its slopes are, which are sums over many tokens' shares."""
    inputs, weight = some(6, 1)
    spread = inputs.T.cov(correction=0)
    costs = obs_loss(weight, spread, some_fisher(rank))
    tiny = obs_loss(weight, spread, 1e-12 * some_fisher(rank))
    torch.testing.assert_close(tiny * 1e12, costs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [1, 3])
def test_errors_that_the_loss_does_not_see_cost_nothing(width: int) -> None:
    """Along one direction of the output alone, as along the output itself behind a norm."""
    inputs, weight = some(6, width)
    spread = inputs.T.cov(correction=0)
    unseen = torch.nn.functional.normalize(weight.sum(dim=(0, 1)), dim=0)
    across = torch.eye(FAN, dtype=torch.float64) - torch.outer(unseen, unseen)
    fisher = across @ some_fisher() @ across
    costs = obs_loss(weight, spread, fisher)
    other = weight + weight.roll(1, dims=0)[..., :1] * unseen
    torch.testing.assert_close(obs_loss(other, spread, fisher), costs, rtol=1e-3, atol=0)
    assert not obs_loss(weight, spread, torch.zeros_like(fisher)).any()


def test_sixteen_rounds_are_near_to_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a round nothing is downdated."""
    inputs, weight = some(64, 1)
    statistics = of_inputs(inputs, weight.shape)
    rounds = obs(weight, **statistics).double()
    monkeypatch.setattr(module, "ROUNDS", 64)
    single = obs(weight, **statistics).double()
    half = [fitted_error(inputs, weight, one.argsort()[:32].tolist()) for one in (single, rounds)]
    assert half[1] < 1.1 * half[0]


@pytest.mark.parametrize("score", [obs, greedy])
def test_of_two_units_that_say_the_same_one_is_dear(score: object) -> None:
    """Both would go by their own size; with a fit the second pays for both."""
    inputs, weight = some(8, 1)
    inputs[:, 3] = inputs[:, 5] * (1 + 1e-6)
    weight[3] = weight[5] = 0.05 * weight[5]
    if score is obs:
        costs = obs(weight, **of_inputs(inputs, weight.shape))
        low, high = sorted((float(costs[3]), float(costs[5])))
        assert low < 0.02 * high  # of which the damping is most
    else:
        costs = greedy(weight, inputs.T @ inputs)
        own = float((inputs[:, 3, None] @ weight[3]).square().sum())
        low, high = sorted((float(costs[3]), float(costs[5])))
        assert low == pytest.approx(own, rel=1e-4)
        assert high == pytest.approx(3 * own, rel=1e-4)  # twice the output is four times the square


@pytest.mark.parametrize(("units", "width"), [(9, 1), (4, 3)])
def test_greedy_takes_the_unit_whose_cut_changes_the_output_least(units: int, width: int) -> None:
    inputs, weight = some(units, width, seed=1)
    costs = greedy(weight, inputs.T @ inputs)
    by_unit = torch.einsum("tuw,uwf->utf", inputs.view(-1, units, width), weight)
    gone: list[int] = []
    total, floor = 0.0, 0.0
    for _ in range(units):
        left = [unit for unit in range(units) if unit not in gone]
        errors = {u: float(by_unit[[*gone, u]].sum(dim=0).square().sum()) for u in left}
        unit = min(errors, key=errors.__getitem__)
        floor = max(floor, errors[unit] - total)
        assert float(costs[unit]) == pytest.approx(floor, rel=1e-4)
        gone.append(unit)
        total = errors[unit]


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_channels_that_are_never_used_go_first(size: float) -> None:
    """Whatever units the others are measured in."""
    inputs, weight = some(12, 1)
    inputs *= size
    inputs[:, [2, 7, 8]] = 0
    costs = obs(weight, **of_inputs(inputs, weight.shape))
    assert sorted(costs.argsort()[:3].tolist()) == [2, 7, 8]


def test_inputs_that_never_change_cost_nothing_with_a_bias_and_something_without() -> None:
    inputs, weight = some(6, 1)
    inputs[:, 2] = 4.0
    assert int(obs(weight, **of_inputs(inputs, weight.shape)).argmin()) == 2
    assert float(greedy(weight, inputs.T @ inputs)[2]) > 0


def test_every_expert_is_scored_by_its_own_inputs() -> None:
    """As if each were an axis: no matrix has the channels of two."""
    experts, channels = 3, 10
    axis = next(
        axis for axis in open_model(tiny_model("mixtral")).structure.axes if axis.groups > 1
    )
    axis = replace(axis, units=experts * channels, groups=experts)
    inputs, weights = zip(*(some(channels, 1, seed=seed) for seed in range(experts)), strict=True)
    own = [one.T.cov(correction=0) for one in inputs]
    fisher = some_fisher()
    found = {f"input_spread#{group}": spread for group, spread in enumerate(own)}
    stored = torch.stack([weight[:, 0].T for weight in weights])
    together = score(
        IMPORTANCE["obs-loss"], axis, stored, {**found, "output_fisher": fisher}, seed=0
    )
    alone = [obs_loss(weight, spread, fisher) for weight, spread in zip(weights, own, strict=True)]
    torch.testing.assert_close(together[:, 0], torch.cat(alone), rtol=1e-3, atol=1e-9)
