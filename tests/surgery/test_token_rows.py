"""The rows of few tokens against the normal matrices of the same: one fit by two systems."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.models import open_model
from secateur.stats import Walk
from secateur.structure import Plan
from secateur.surgery import (
    Rows,
    Sums,
    gathering,
    mask_tuning,
    refit,
    refit_on_held_out,
    sequential_repair,
)
from secateur.surgery import surgeon as operating

INPUTS, OUTPUTS, TOKENS = 90, 7, 40


def problem(seed: int = 0, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs whose means are large, a residual that some of them make, and weights of tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(tokens, INPUTS) @ draw(INPUTS, INPUTS) / 10 + 3 * draw(INPUTS)
    inputs[:, 4] = 0
    weights = torch.rand(tokens, generator=generator, dtype=torch.float64) + 0.1
    return inputs, inputs[:, :OUTPUTS] + draw(tokens, OUTPUTS), weights


def both(*given: Tensor, dtype: torch.dtype = torch.float64) -> list[Any]:
    """As sums of products, and as rows that come in two batches."""
    found = []
    for kind in (Sums, Rows):
        own = kind(INPUTS, OUTPUTS, dtype=dtype)
        for part in zip(*(one.split(23) for one in given), strict=True):
            own.update(*part)
        found.append(own.normal())
    return found


@pytest.mark.parametrize("centred", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("damping", [1e-3, 1e-2, 1.0, 10.0, float("inf")])
def test_the_fit_of_rows_is_that_of_products(damping: float, centred: bool) -> None:
    products, rows = both(*problem())
    if not centred:
        products, rows = products.about_zero(), rows.about_zero()
    expected, found = refit(products, damping), refit(rows, damping)
    assert torch.allclose(found.change, expected.change, atol=1e-9)
    assert torch.allclose(found.added, expected.added, atol=1e-9)
    for fit in (None, found):
        given = (fit.change, fit.added) if fit else ()
        assert rows.error(*given) == pytest.approx(products.error(*given), rel=1e-8)
    assert found.damping == damping
    assert found.doubt == 0


def test_what_rows_say_of_themselves_is_what_products_say() -> None:
    inputs, residual, weights = problem()
    before = inputs.clone(), residual.clone()
    products, rows = both(inputs, residual, weights)
    for name in ("power", "inputs", "cross", "mean", "left"):
        assert torch.allclose(getattr(rows, name), getattr(products, name), atol=1e-9), name
    assert rows.square == pytest.approx(products.square)
    assert rows.count == pytest.approx(products.count)
    refit(rows, 0.1)
    rows.error(torch.ones(OUTPUTS, INPUTS), torch.ones(OUTPUTS))
    assert torch.equal(inputs, before[0]), "nothing is changed in place"
    assert torch.equal(residual, before[1]), "nothing is changed in place"


def test_the_damping_that_held_out_rows_like_is_that_of_products() -> None:
    inputs, residual, weights = problem(tokens=60)
    fitted = both(*(one[:40] for one in (inputs, residual, weights)))
    held = both(*(one[40:] for one in (inputs, residual, weights)))
    found = [refit_on_held_out(one, other) for one in fitted for other in held]
    for fit in found[1:]:
        assert fit.damping == found[0].damping
        assert torch.allclose(fit.change, found[0].change, atol=1e-8)
        assert torch.allclose(fit.added, found[0].added, atol=1e-8)


def test_scales_of_units_are_the_same_by_rows() -> None:
    products, rows = both(*problem())
    weight = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
    owner = torch.arange(INPUTS) // 6
    expected, found = (mask_tuning(one, weight, owner).change for one in (products, rows))
    assert torch.allclose(found, expected, atol=1e-8)


def test_rows_in_fp32_are_as_good_as_those_in_fp64() -> None:
    given = problem()
    exact = refit(both(*given)[1], 0.001).change
    products, rows = (refit(one, 0.001).change for one in both(*given, dtype=torch.float32))
    assert rows.dtype == torch.float32
    assert (rows - exact).abs().max() < 1e-4
    assert (rows - exact).abs().max() < (products - exact).abs().max()


def test_where_nothing_is_left_nothing_changes_to_the_bit() -> None:
    inputs, residual, weights = problem()
    _, rows = both(inputs, torch.zeros_like(residual), weights)
    fit = refit(rows, 0.01)
    assert not fit.change.any()
    assert not fit.added.any()


def test_without_damping_the_system_of_rows_is_singular_and_says_so() -> None:
    fit = refit(both(*problem())[1], 0.0, where="layers.3.mlp.down_proj")
    assert "layers.3.mlp.down_proj: singular" in fit.warnings[0]
    assert fit.change.isfinite().all()


def test_rows_are_kept_of_few_tokens_alone() -> None:
    kinds = [type(gathering(count, 100, 5, dtype=torch.float32)) for count in (1, 50, 51, 1000)]
    assert kinds == [Rows, Rows, Sums, Sums]


@pytest.mark.parametrize("repair", ["refit", "refit-no-bias", "mask-tuning"])
def test_a_repair_by_rows_is_the_one_by_products(
    repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve tokens to fit to and three held out, and MLPs of 22 channels that stay."""
    opened = open_model(tiny_model("llama-gqa"))
    axes = opened.structure.axes
    keep = {a.name: tuple(u for u in range(a.units) if u % 4) for a in axes if a.kind == "mlp"}
    plan = Plan(keep, opened.structure.architecture, opened.structure.weights)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, opened.config.vocab_size, (5, 3), generator=generator)

    def repaired() -> dict[str, Tensor]:
        walk = Walk(opened.streamed(), tokens, batch=2)
        return dict(sequential_repair(walk, opened.structure, plan, repair=repair).tensors)

    def kind_of(kind: Any) -> Any:
        return lambda tokens, **options: kind(**options)

    found = {}
    for kind in (Rows, Sums):
        monkeypatch.setattr(operating, "gathering", kind_of(kind))
        found[kind] = repaired()
    assert set(found[Rows]) == set(found[Sums])
    for name, tensor in found[Sums].items():
        assert torch.allclose(found[Rows][name], tensor, atol=2e-4), name


@pytest.mark.parametrize(("kind", "again"), [(Rows, False), (Sums, True)])
def test_rows_are_not_taken_up_again_in_fp64(
    kind: Any, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are where less is left than their rounding could tell; rows are exact as they are."""
    opened = open_model(tiny_model("llama-gqa"))
    axis = next(axis for axis in opened.structure.axes if axis.kind == "mlp")
    keep = {axis.name: tuple(range(axis.units // 2))}
    plan = Plan(keep, opened.structure.architecture, opened.structure.weights)
    asked: list[torch.dtype] = []

    def spied(tokens: int, *, dtype: torch.dtype, **options: Any) -> Any:
        asked.append(dtype)
        return kind(dtype=dtype, **options)

    monkeypatch.setattr(operating, "gathering", spied)
    monkeypatch.setattr(operating, "TOLERANCE", 10.0)  # whatever is left counts as little
    tokens = torch.randint(3, opened.config.vocab_size, (5, 3))
    sequential_repair(Walk(opened.streamed(), tokens, batch=2), opened.structure, plan)
    assert (torch.float64 in asked) == again
