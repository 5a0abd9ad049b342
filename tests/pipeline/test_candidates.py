"""Candidates in one pass against models that are cut and fitted by hand."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import tiny_model
from secateur.checkpoint import Store
from secateur.models import open_model
from secateur.pipeline.candidates import divergences
from secateur.pipeline.scoring import reduction
from secateur.stats import Statistics, Walk, collect
from secateur.structure import Axis
from secateur.surgery import Products
from secateur.surgery.one_shot import FITTED_BY, one_shot
from secateur.surgery.refit import refit


def by_hand(
    model: Any, tokens: Tensor, gone: dict[Axis, tuple[int, ...]], seen: Statistics
) -> float:
    """KL of a copy of the model with the consumers' weights in place."""
    other = copy.deepcopy(model)
    for axis, units in gone.items():
        if not units:
            continue
        module, member = other.get_submodule(axis.consumer.module), axis.consumer
        channels = member.blocks.indices(torch.tensor(units)).flatten()
        stays = torch.ones(module.weight.shape[member.dim], dtype=torch.bool)
        stays[channels] = False
        turned = module.weight.data.movedim(member.dim, 1)
        own = {name: seen[axis.name][name] for name in FITTED_BY}
        ((weight, added),) = one_shot(turned, [channels], **own)
        whole = torch.zeros_like(turned)
        whole[:, stays] = weight
        module.weight.data = whole.movedim(1, member.dim).contiguous()
        bias = added if module.bias is None else module.bias.data + added
        module.bias = nn.Parameter(bias)
    with torch.no_grad():
        dense = model(tokens).logits.double().log_softmax(-1)
        theirs = other(tokens).logits.double().log_softmax(-1)
    return float((dense.exp() * (dense - theirs)).sum(-1).mean())


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("variant", ["llama-gqa", "gpt2", "qwen2-gqa"])
def test_divergences_are_those_of_models_cut_by_hand(
    variant: str, batch: int, tokens: Tensor
) -> None:
    """One layer, two, all, none; in any order."""
    model = tiny_model(variant)
    opened = open_model(model)
    axes = opened.structure.axes
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=batch)
    seen = collect(walk, axes, FITTED_BY)
    last = max(axis.layer for axis in axes)
    every: list[dict[Axis, tuple[int, ...]]] = [
        {axis: (0,) for axis in axes if axis.layer == last},
        {axis: tuple(range(axis.units // 2)) for axis in axes},
        {},
        {axis: (axis.units - 1,) for axis in axes if axis.layer == 0 and axis.kind == "mlp"},
        dict.fromkeys(axes, ()),
    ]
    found = divergences(walk, every, seen)
    expected = [by_hand(model, tokens, gone, seen) for gone in every]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert found[2] == found[4] == 0


def test_a_store_knows_what_candidates_were_fitted_on(
    tokens: Tensor, tiny_folder: Any, tmp_path: Path
) -> None:
    """The same choices on the same windows, fitted by other statistics, are asked about anew."""
    opened = open_model(tiny_folder("llama-gqa"))
    axes, source = opened.structure.axes, opened.streamed(device="cpu")
    every = [{axis: (0,) for axis in axes if axis.layer == 1}]
    walks = [Walk(source, own, batch=4) for own in (tokens, tokens.flip(1))]
    one, other = (collect(walk, axes, FITTED_BY) for walk in walks)
    with Store(tmp_path / "store") as store:
        walk = Walk(source, tokens, batch=4, store=store)
        first = divergences(walk, every, one, {"tokens": "one"})
        assert divergences(walk, every, other, {"tokens": "one"}) == first  # as it was told
        second = divergences(walk, every, other, {"tokens": "other"})
    assert second != first
    assert second == divergences(walks[0], every, other)


@pytest.mark.parametrize("name", ["obs-loss"])
def test_scores_of_gradients_are_known_by_the_windows_of_these(name: str) -> None:
    view = open_model(tiny_model()).weights
    names = {
        reduction(name, view, 0, members, Statistics(), asks)[0]
        for members in ("sum", "max")
        for asks in (False, True)
    }
    assert len(names) == 4


def test_fits_are_those_of_least_squares() -> None:
    """Of sets that grow, each."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 12, generator=generator).double() @ torch.randn(12, 12).double() + 2
    weight = torch.randn(5, 12, generator=generator).double()
    sets = [torch.tensor(own) for own in ([1, 4], [1, 4, 7], [0, 1, 4, 5, 7, 11])]
    fits = one_shot(
        weight,
        sets,
        input_gram=inputs.T @ inputs,
        input_mean=inputs.mean(dim=0),
        input_var=inputs.var(dim=0, correction=0),
        damping=1e-12,
    )
    for gone, (fitted, added) in zip(sets, fits, strict=True):
        kept = [i for i in range(12) if i not in gone.tolist()]
        design = torch.cat([inputs[:, kept], torch.ones(300, 1).double()], dim=1)
        solution = torch.linalg.lstsq(design, inputs @ weight.T).solution
        assert torch.allclose(fitted.double(), solution[:-1].T, atol=1e-4)
        assert torch.allclose(added.double(), solution[-1], atol=1e-4)


def test_the_damped_fit_is_that_of_refit() -> None:
    """To the dense output, with the dense inputs: `refit` of the same sums."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 10, generator=generator).double() @ torch.randn(10, 10).double() + 1
    inputs[:, 3] *= 1000
    weight = torch.randn(4, 10, generator=generator).double()
    gone = torch.tensor([0, 6])
    kept = torch.tensor([i for i in range(10) if i not in gone.tolist()])
    fits = one_shot(
        weight,
        [gone],
        input_gram=inputs.T @ inputs,
        input_mean=inputs.mean(dim=0),
        input_var=inputs.var(dim=0, correction=0),
    )
    ((fitted, added),) = fits
    left = inputs[:, gone] @ weight[:, gone].T
    about, mean = inputs[:, kept] - inputs[:, kept].mean(0), inputs[:, kept].mean(0)
    normal = Products(
        count=200,
        mean=mean,
        left=left.mean(0),
        spread=about.T @ about,
        shared=about.T @ (left - left.mean(0)),
        square=float(left.square().sum()),
        noise=0.0,
    )
    expected = refit(normal)
    torch.testing.assert_close(
        fitted.double(), weight[:, kept] + expected.change, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(added.double(), expected.added, rtol=1e-4, atol=1e-3)


def test_what_keeps_nothing_gives_its_mean() -> None:
    inputs = torch.randn(50, 4)
    weight = torch.randn(3, 4)
    ((fitted, added),) = one_shot(
        weight,
        [torch.arange(4)],
        input_gram=inputs.T @ inputs,
        input_mean=inputs.mean(0),
        input_var=inputs.var(0, correction=0),
    )
    assert fitted.shape == (3, 0)
    assert torch.allclose(added, weight @ inputs.mean(0), atol=1e-5)
