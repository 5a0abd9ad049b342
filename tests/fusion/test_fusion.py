"""Laws of the fusions: where the blend goes, and what must not move it."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.fusion import FUSIONS, Fused, Scope, fuse
from secateur.fusion.homoscedastic import variances
from secateur.fusion.probes import cosine, disagreement_runs, ranks
from secateur.fusion.regression import fitted_blend, non_negative_minimum
from secateur.fusion.split_half import reliability
from secateur.fusion.trained import descended, features, initial

ALL = list(FUSIONS)
BLENDS = [name for name in ALL if name != "homoscedastic"]
SIZES = {"layers.0.attention": 5, "layers.0.mlp": 40, "layers.1.attention": 5, "layers.1.mlp": 33}


def scopes_of(seed: int = 0, samples: int = 6) -> dict[str, Scope]:
    """Scores with noise by sample, of other sizes and scales in every scope."""
    generator = torch.Generator().manual_seed(seed)
    scopes = {}
    for number, (axis, units) in enumerate(SIZES.items()):
        base = torch.rand(2, units, generator=generator) ** 3 + 0.01
        noise = torch.rand(2, samples, units, generator=generator)
        by_sample = base[:, None] * (0.5 + noise) * 10.0 ** (number - 2)
        coarse, fine = 0.2 * by_sample[0], by_sample[1]
        scopes[axis] = Scope(coarse.mean(0), fine.mean(0), coarse, fine)
    return scopes


def loss_of(worth: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """A probe whose loss is what the masked units are worth, and a constant."""

    def probe(masks: Mapping[str, Tensor]) -> Tensor:
        return 2.5 + torch.stack([m.double() @ worth[a].double() for a, m in masks.items()]).sum(0)

    return probe


def worth_of(scopes: Mapping[str, Scope], seed: int = 3) -> dict[str, Tensor]:
    """Something between the two scores, with noise: the same whatever their scale is."""
    generator = torch.Generator().manual_seed(seed)
    worth = {}
    for axis, scope in scopes.items():
        coarse, fine = scope.pair()
        mixed = 0.3 * coarse / coarse.mean() + 0.7 * fine / fine.mean()
        worth[axis] = mixed * torch.rand(len(mixed), generator=generator)
    return worth


def fused(name: str, scopes: Mapping[str, Scope], **settings: Any) -> dict[str, Fused]:
    return fuse(name, scopes, probe=loss_of(worth_of(scopes_of())), **settings)


@pytest.mark.parametrize("name", ALL)
def test_one_finite_score_a_unit_and_a_blend_on_the_simplex(name: str) -> None:
    scopes = scopes_of()
    for axis, result in fused(name, scopes).items():
        assert result.scores.shape == (SIZES[axis],)
        assert result.scores.dtype == torch.float32
        assert torch.isfinite(result.scores).all()
        assert (result.alpha >= 0).all()
        assert result.alpha.sum().item() == pytest.approx(1)
        assert result.by_sample is not None
        assert result.by_sample.shape == (6, SIZES[axis])


@pytest.mark.parametrize("name", BLENDS)
def test_each_blended_value_lies_between_the_two(name: str) -> None:
    scopes = scopes_of()
    for axis, result in fused(name, scopes).items():
        both = torch.stack([x / x.mean() for x in scopes[axis].pair()])
        assert (result.scores >= both.min(0).values - 1e-6).all()
        assert (result.scores <= both.max(0).values + 1e-6).all()


@pytest.mark.parametrize("name", BLENDS)
def test_scores_that_agree_are_left_as_they_are(name: str) -> None:
    """coarse = 3 x fine, so c_hat = f_hat: whatever the blend, it is the identity."""
    scopes = {
        axis: Scope(3 * s.fine, s.fine, 3 * s.fine_by_sample, s.fine_by_sample)
        for axis, s in scopes_of().items()
        if s.fine is not None and s.fine_by_sample is not None
    }
    for axis, result in fused(name, scopes).items():
        fine = scopes[axis].pair()[1]
        assert torch.allclose(result.scores.double(), fine / fine.mean(), rtol=1e-6)
        if name not in ("coarse", "fine", "trained"):
            assert result.alpha.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_rescaling_a_score_leaves_the_blend_and_the_order(name: str) -> None:
    scopes = scopes_of()
    scaled = {
        axis: Scope(
            1e4 * s.pair()[0],
            1e-3 * s.pair()[1],
            1e4 * s.pair_by_sample()[0],
            1e-3 * s.pair_by_sample()[1],
        )
        for axis, s in scopes.items()
    }
    before, after = fused(name, scopes), fused(name, scaled)
    for axis in scopes:
        assert torch.allclose(before[axis].alpha, after[axis].alpha, atol=1e-6)
        assert before[axis].scores.argsort().tolist() == after[axis].scores.argsort().tolist()


@pytest.mark.parametrize("name", [name for name in ALL if "probe" in FUSIONS[name].asks])
def test_rescaling_the_loss_leaves_the_blend(name: str) -> None:
    scopes, worth = scopes_of(), worth_of(scopes_of())
    results = [
        fuse(name, scopes, probe=loss_of({axis: scale * w for axis, w in worth.items()}))
        for scale in (1.0, 1e3)
    ]
    for axis in scopes:
        assert torch.allclose(results[0][axis].alpha, results[1][axis].alpha, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_permuting_units_permutes_the_result(name: str) -> None:
    scopes, worth = scopes_of(), worth_of(scopes_of())
    generator = torch.Generator().manual_seed(1)
    order = {axis: torch.randperm(units, generator=generator) for axis, units in SIZES.items()}
    moved = {
        axis: Scope(*(getattr(s, f)[..., order[axis]] for f in s.__dataclass_fields__))
        for axis, s in scopes.items()
    }
    plain = fuse(name, scopes, probe=loss_of(worth))
    other = fuse(name, moved, probe=loss_of({a: w[order[a]] for a, w in worth.items()}))
    for axis in scopes:
        assert torch.allclose(other[axis].scores, plain[axis].scores[order[axis]], rtol=1e-4)
        assert torch.allclose(other[axis].alpha, plain[axis].alpha, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides(name: str) -> None:
    scopes = scopes_of()
    first, second, other = (fused(name, scopes, seed=seed) for seed in (4, 4, 5))
    assert all(torch.equal(first[axis].scores, second[axis].scores) for axis in scopes)
    drawn = any(not torch.equal(first[axis].alpha, other[axis].alpha) for axis in scopes)
    assert drawn == ("generator" in FUSIONS[name].asks)


@pytest.mark.parametrize("name", ALL)
def test_a_scope_of_zeros_and_one_of_a_single_unit_stay_finite(name: str) -> None:
    scopes = scopes_of()
    zero, one = torch.zeros(5), torch.ones(1)
    scopes["layers.0.attention"] = Scope(zero, zero, zero.expand(6, 5), zero.expand(6, 5))
    scopes["layers.1.attention"] = Scope(one, one, one.expand(6, 1), one.expand(6, 1))
    worth = worth_of(scopes_of())
    worth["layers.1.attention"] = one
    for result in fuse(name, scopes, probe=loss_of(worth)).values():
        assert torch.isfinite(result.scores).all()
        assert torch.isfinite(result.alpha).all()


def planted(cancelling: bool) -> tuple[dict[str, Scope], dict[str, Tensor]]:
    """Units whose elementwise terms cancel; masking them is harmless, or it is not."""
    generator = torch.Generator().manual_seed(2)
    terms = torch.randn(40, 16, generator=generator) * torch.rand(40, 1, generator=generator)
    terms[:20] = terms[:20].abs()
    terms[20:] -= terms[20:].mean(dim=1, keepdim=True)
    coarse, fine = terms.sum(1).abs(), terms.abs().sum(1)
    worth = coarse if cancelling else terms.square().sum(1)
    noise = 1 + 0.1 * torch.rand(2, 4, 40, generator=generator)
    scope = Scope(coarse, fine, coarse * noise[0], fine * noise[1])
    return {"layers.0.mlp": scope}, {"layers.0.mlp": worth}


@pytest.mark.parametrize("name", ["evidence", "regression", "trained"])
def test_harmless_cancelling_terms_pull_to_coarse_and_harmful_ones_to_fine(name: str) -> None:
    settings = {"shrinkage": 0.01} if name == "regression" else {}
    for cancelling in (True, False):
        scopes, worth = planted(cancelling)
        alpha = fuse(name, scopes, probe=loss_of(worth), **settings)["layers.0.mlp"].alpha
        assert alpha[0 if cancelling else 1] > 0.6


@pytest.mark.parametrize("name", ["evidence", "split_half"])
def test_a_high_temperature_gives_the_equal_blend_and_a_low_one_a_choice(name: str) -> None:
    scopes = scopes_of()
    for result in fused(name, scopes, tau=1e6).values():
        assert result.alpha.tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    cold = fused(name, scopes, tau=1e-6)
    for axis in ("layers.0.mlp", "layers.1.mlp"):  # heads are so few that both can agree alike
        assert cold[axis].alpha.max() == pytest.approx(1)


def test_shrinkage_leads_from_the_regression_to_the_equal_blend() -> None:
    shares = [
        torch.stack([r.alpha for r in fused("regression", scopes_of(), shrinkage=s).values()])
        for s in (0.0, 1.0, 1e3)
    ]
    distance = [(share - 0.5).abs().sum() for share in shares]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 0.02


def test_the_regression_finds_the_blend_that_made_the_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.rand(2, 60, 3, generator=generator, dtype=torch.float64)
    alpha = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    worth = torch.tensor([1.0, 5.0, 0.3], dtype=torch.float64)
    losses = 4.0 + (coarse * alpha[:, 0] + fine * alpha[:, 1]) @ worth
    assert torch.allclose(fitted_blend(losses, coarse, fine, 0.0), alpha, atol=1e-3)
    nothing = fitted_blend(torch.full((60,), 0.1), coarse, fine)
    assert torch.allclose(nothing, torch.full((3, 2), 0.5, dtype=torch.float64))


def test_the_active_set_reaches_what_projected_descent_reaches() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        design = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        right = design.T @ torch.randn(12, generator=generator, dtype=torch.float64)
        matrix = design.T @ design
        x = torch.zeros(6, dtype=torch.float64)
        for _ in range(4000):
            x = (x - (matrix @ x - right) / matrix.trace()).clamp(min=0)
        assert torch.allclose(non_negative_minimum(matrix, right), x, atol=1e-6)


def test_the_probes_hold_every_unit_once_and_disagree() -> None:
    coarse, fine = scopes_of()["layers.1.mlp"].pair()
    masks = disagreement_runs(coarse, fine, 8)
    assert masks.shape == (8, 33)
    assert torch.equal(masks.sum(0), torch.ones(33, dtype=torch.int64))
    assert masks.sum(1).max() - masks.sum(1).min() <= 1
    apart = masks.double() @ (ranks(coarse) - ranks(fine)) / masks.sum(1)
    assert torch.equal(apart, apart.sort().values)
    assert disagreement_runs(coarse[:3], fine[:3], 8).shape == (3, 3)


def test_ranks_are_means_of_ties_and_a_constant_agrees_with_nothing() -> None:
    assert ranks(torch.tensor([5.0, 1.0, 5.0, 7.0])).tolist() == [1.5, 0.0, 1.5, 3.0]
    constant, other = torch.full((7,), 0.1, dtype=torch.float64), torch.rand(7).double()
    assert cosine(constant, other).abs() < 1e-6
    assert cosine(other, constant).abs() < 1e-6
    assert cosine(other, 4 * other - 1).item() == pytest.approx(1)


def test_the_reliable_granularity_gets_the_weight_in_split_half() -> None:
    scope = scopes_of(samples=12)["layers.1.mlp"]
    coarse, fine = scope.pair_by_sample()
    noise = torch.rand(coarse.shape, generator=torch.Generator().manual_seed(0)).double()
    assert reliability(fine, torch.arange(12)) > reliability(noise, torch.arange(12))
    noisy = replace(scope, coarse=noise.mean(0), coarse_by_sample=noise)
    assert fuse("split_half", {"a": noisy})["a"].alpha[1] > 0.9
    assert fuse("precision", {"a": noisy})["a"].alpha[1] > 0.5


def test_split_half_is_the_mean_over_all_its_splits() -> None:
    """By hand: the softmax of mean reliabilities, over the orders that the seed draws."""
    scope = scopes_of(samples=9)["layers.0.mlp"]
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(9, generator=generator) for _ in range(4)]
    agreement = [
        sum(float(reliability(scores, order)) for order in orders) / len(orders)
        for scores in scope.pair_by_sample()
    ]
    expected = (torch.tensor(agreement) / 0.3).softmax(dim=0)
    found = fuse("split_half", {"a": scope}, seed=5, splits=4, tau=0.3)["a"]
    assert found.alpha.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    one = fuse("split_half", {"a": scope}, seed=5, splits=1, tau=0.3)["a"]
    assert one.alpha.tolist() != pytest.approx(expected.tolist(), rel=1e-3)


def test_the_features_of_a_unit_are_those_of_the_equation() -> None:
    scope = scopes_of()["layers.0.attention"]
    scores, samples = scope.coarse, scope.coarse_by_sample
    assert scores is not None
    assert samples is not None
    size = scores / scores.mean()
    expected = [
        size.log(),
        (size - size.mean()) / (size - size.mean()).square().mean().sqrt(),
        samples.std(dim=0) / samples.mean(dim=0),
        scores.argsort().argsort() / (len(scores) - 1) - 0.5,
    ]
    found = features(scores.double(), samples.double())
    assert torch.allclose(found, torch.stack(expected, dim=1).double(), rtol=1e-4, atol=1e-6)


def test_the_penalty_keeps_the_projection_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one question says, a free projection follows to one end; the penalty holds it back."""
    scope = scopes_of()["layers.0.mlp"]
    pairs = zip(scope.pair(), scope.pair_by_sample(), strict=True)
    seen = [torch.stack([features(scores, samples) for scores, samples in pairs])]
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    keys = torch.stack([losses, losses.flip(0).sqrt()], dim=1)  # coarse agrees, fine does not
    start = initial(torch.Generator().manual_seed(0))
    sizes = []
    for decay in (0.0, 0.01, 0.1):
        monkeypatch.setattr(sys.modules["secateur.fusion.trained"], "DECAY", decay)
        fitted = descended(start, seen, [(losses, keys)], 200)
        assert float(fitted.alpha(seen[0])[0]) > 0.5
        sizes.append(float(fitted.outer.norm()))
    assert sizes[0] > 1.1 * sizes[1] > 1.2 * sizes[2], sizes


def test_the_projection_starts_at_the_equal_blend_and_has_56_numbers() -> None:
    start = initial(torch.Generator().manual_seed(0))
    scope = scopes_of()["layers.0.mlp"]
    pairs = zip(scope.pair(), scope.pair_by_sample(), strict=True)
    seen = torch.stack([features(scores, samples) for scores, samples in pairs])
    assert start.alpha(seen).tolist() == [0.5, 0.5]
    assert start.inner.numel() + start.offset.numel() + start.outer.numel() == 56
    for result in fused("trained", scopes_of(), steps=0).values():
        assert result.alpha.tolist() == [0.5, 0.5]


def test_descent_on_the_likelihood_reaches_the_closed_form() -> None:
    scores = torch.stack(scopes_of()["layers.1.mlp"].pair())
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([logs], lr=0.05)
    for _ in range(5000):
        loss = ((torch.exp(-logs)[:, None] * scores).mean(1) / 2 + logs / 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.allclose(logs.detach().exp(), variances(scores), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scope", ["layer_kind", "global"])
def test_homoscedastic_scores_equal_their_equation(scope: str) -> None:
    scopes = scopes_of()
    pairs = {axis: own.pair() for axis, own in scopes.items()}
    results = fuse("homoscedastic", scopes, scope=scope)
    for axis, (x1, x2) in pairs.items():
        m1, m2 = x1.mean(), x2.mean()
        if scope == "global":
            m1, m2 = (torch.cat([pair[k] for pair in pairs.values()]).mean() for k in (0, 1))
        expected = x1 / (2 * m1) + x2 / (2 * m2) + 0.5 * (m1 * m2).log()
        assert torch.allclose(results[axis].scores.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["homoscedastic", "mean", "precision"])
def test_a_constant_second_score_gives_the_order_of_the_first(name: str) -> None:
    own = scopes_of()["layers.1.mlp"]
    flat = torch.full((33,), 0.7)
    noise = torch.rand(6, 33, generator=torch.Generator().manual_seed(0))
    scope = replace(own, fine=flat, fine_by_sample=noise - noise.mean(0) + flat)
    result = fuse(name, {"a": scope})["a"].scores
    assert result.argsort().tolist() == own.pair()[0].argsort().tolist()


def test_samples_are_the_scores_of_each_sample() -> None:
    """Their mean is the score again (for homoscedastic: without its logarithm)."""
    scopes = scopes_of()
    for name in ALL:
        for axis, result in fused(name, scopes).items():
            assert result.by_sample is not None
            apart = result.scores - result.by_sample.mean(0)
            offset = apart.mean() if name == "homoscedastic" else 0
            assert torch.allclose(apart, torch.zeros(SIZES[axis]) + offset, atol=1e-4)


def test_the_scale_makes_plain_scores_raw_again_up_to_one_factor() -> None:
    scopes = scopes_of()
    for name, which in (("coarse", 0), ("fine", 1)):
        results = fuse(name, scopes)
        raw = torch.cat([scope.pair()[which].float() for scope in scopes.values()])
        got = torch.cat([result.scale * result.scores for result in results.values()])
        assert torch.allclose(got * raw.mean(), raw, rtol=1e-5)


def test_the_scale_does_not_favour_a_granularity() -> None:
    """Coarse scores a thousand times smaller everywhere: no scope gets smaller for its blend."""
    small = {
        axis: replace(scope, coarse=1e-3 * scope.pair()[0]) for axis, scope in scopes_of().items()
    }
    for name in ("coarse", "fine", "evidence"):
        for axis, result in fused(name, scopes_of()).items():
            assert fused(name, small)[axis].scale == pytest.approx(result.scale, rel=1e-5)


def test_a_fusion_alone_needs_only_its_own_score() -> None:
    fine = scopes_of()["layers.0.mlp"].fine
    result = fuse("fine", {"a": Scope(fine=fine)})["a"]
    assert result.by_sample is None
    with pytest.raises(
        SecateurError, match=r"'mean' needs the coarse scores of a; they .*\n.*fine"
    ):
        fuse("mean", {"a": Scope(fine=fine)})


@pytest.mark.parametrize("name", ["split_half", "precision", "trained"])
def test_a_single_sample_is_refused(name: str) -> None:
    with pytest.raises(SecateurError, match=r"at least 2 .*has 1\.\nType --samples 2"):
        fused(name, scopes_of(samples=1))
    without = {"a": replace(scopes_of()["layers.0.mlp"], fine_by_sample=None)}
    with pytest.raises(SecateurError, match="the fine scores of a for each calibration sample"):
        fuse(name, without, probe=loss_of({}))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("evidense", {}, "Unknown fusion 'evidense'. Did you mean 'evidence'"),
        ("evidence", {"probe": None}, "asks what the loss is.*give it a probe"),
        ("evidence", {"tua": 1.0}, "Unknown setting .*'tua'. Did you mean 'tau'"),
        ("evidence", {"tau": 0.0}, "tau = 0.0 will not do"),
        ("regression", {"shrinkage": -1.0}, "shrinkage = -1.0 will not do"),
        ("homoscedastic", {"scope": "layer"}, "Unknown scope .*'layer'"),
        ("evidence", {"probe": lambda masks: torch.zeros(3)}, r"shape \[3\] for 26 masks"),
        (
            "evidence",
            {"probe": lambda masks: torch.full((len(next(iter(masks.values()))),), torch.nan)},
            "expected 26 finite losses",
        ),
    ],
)
def test_a_slip_is_told_its_cure(name: str, given: dict[str, Any], message: str) -> None:
    given = {"probe": loss_of(worth_of(scopes_of())), **given}
    with pytest.raises(SecateurError, match=message) as error:
        fuse(name, scopes_of(), **given)
    assert len(str(error.value).splitlines()) <= 2


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(SecateurError, match="coarse scores of a are NaN"):
        fuse("mean", {"a": Scope(torch.full((3,), torch.nan), torch.ones(3))})


@pytest.mark.parametrize("name", ALL)
def test_every_fusion_says_what_it_is_and_where_it_is_from(name: str) -> None:
    assert FUSIONS[name].summary.endswith(".")
    assert FUSIONS[name].paper.startswith("https://arxiv.org/")
    assert inspect.getmodule(FUSIONS[name].function).__doc__  # type: ignore[union-attr]
