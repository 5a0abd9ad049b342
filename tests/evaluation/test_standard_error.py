"""Standard errors equal independent formulas, and what many draws scatter by."""

import math
import statistics

import pytest
import torch

from secateur.evaluation import Estimate, mean_of_draws, mean_of_means, mean_over_windows


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()


def test_windows_of_one_length_are_draws_of_their_means() -> None:
    sums, length = draws(17), 12
    found = mean_over_windows(sums, torch.full((17,), length))
    means = (sums / length).tolist()
    assert found.value == pytest.approx(statistics.mean(means))
    assert found.error == pytest.approx(statistics.stdev(means) / math.sqrt(17))


def test_the_jackknife_agrees_where_windows_differ() -> None:
    """The other route: leave one window out, and see how far the mean goes."""
    counts = torch.randint(5, 20, (400,), generator=torch.Generator().manual_seed(1))
    sums = draws(400) * counts.sqrt() + 2.0 * counts
    found = mean_over_windows(sums, counts)
    left = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = ((left - left.mean()).square().sum() * 399 / 400).sqrt().item()
    assert found.error == pytest.approx(jackknife, rel=0.02)


def test_windows_without_a_token_count_for_nothing() -> None:
    sums, counts = draws(6), torch.full((6,), 3)
    more = mean_over_windows(torch.cat([sums, sums.new_zeros(4)]), torch.tensor([3] * 6 + [0] * 4))
    assert more == mean_over_windows(sums, counts)


def test_the_error_is_what_means_of_many_samples_scatter_by() -> None:
    found = [mean_of_draws(draws(50, seed).tolist()) for seed in range(300)]
    scatter = statistics.stdev(one.value for one in found)
    assert statistics.mean(one.error or 0 for one in found) == pytest.approx(scatter, rel=0.1)


def test_one_draw_says_nothing_of_its_error() -> None:
    assert mean_over_windows(draws(1), torch.tensor([4])).error is None
    assert mean_of_draws([0.5]) == Estimate(0.5, None)
    assert mean_of_means([Estimate(1.0, 0.1), Estimate(0.0, None)]) == Estimate(0.5, None)


def test_errors_of_independent_means_add_up_by_squares() -> None:
    found = mean_of_means([Estimate(0.4, 0.03), Estimate(0.6, 0.04)])
    assert found.value == pytest.approx(0.5)
    assert found.error == pytest.approx(0.025)
