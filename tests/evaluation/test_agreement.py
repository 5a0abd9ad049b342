"""A model beside the dense one, streamed: the same as of whole models."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EVERY_FAMILY, tiny_model
from secateur.checkpoint import Kept, Store
from secateur.errors import SecateurError
from secateur.evaluation import beside, perplexity
from secateur.models import open_model


def changed(model: Any) -> Any:
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=draw))
    return other


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_streamed_is_whole(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    other = changed(model)
    with torch.no_grad():
        p, q = (one(tokens).logits[:, :-1].double().log_softmax(-1) for one in (model, other))
    apart = (p.exp() * (p - q)).sum(-1)
    same = (p.argmax(-1) == q.argmax(-1)).double()
    sources = [open_model(one).streamed(device="cpu") for one in (other, model)]
    (found,) = beside(*sources, [tokens], [4])
    told = found.agreement
    assert (told.window, told.tokens) == (24, 6 * 23)
    for one, wanted in ((told.divergence, apart), (told.top1, same)):
        assert one.value == pytest.approx(wanted.mean().item(), rel=1e-3)
        means = wanted.mean(dim=1)
        assert one.error == pytest.approx((means.std() / math.sqrt(6)).item(), rel=1e-2)
    assert told.divergence.value > 0
    for one, source in zip((found.model, found.dense), sources, strict=True):
        alone = perplexity(source, tokens, batch=4)
        assert one.value == pytest.approx(alone.value, rel=1e-6)
        assert one.error == pytest.approx(alone.error, rel=1e-4)


def test_a_model_agrees_with_itself(tokens: Tensor) -> None:
    model = tiny_model()
    one, other = (open_model(model).streamed(device="cpu") for _ in range(2))
    for found in beside(one, other, [tokens, tokens[:, :9]], [4, 6]):
        assert found.agreement.divergence.value == 0
        assert found.agreement.top1.value == 1
        assert found.model == found.dense


def test_what_windows_begin_with_is_asked_of_nobody(tokens: Tensor) -> None:
    model = tiny_model()
    sources = [open_model(one).streamed(device="cpu") for one in (changed(model), model)]
    begun = torch.cat([tokens.new_ones(6, 1), tokens], dim=1)
    begun[3, 5] = 1
    (found,) = beside(*sources, [begun], [4], begin=[1])
    assert found.agreement.tokens == 6 * 24 - 1
    with pytest.raises(SecateurError, match="BOS alone"):
        beside(*sources, [tokens.new_ones(2, 4)], [4], begin=[1])


@pytest.mark.parametrize("stage", [2, 4])
def test_a_run_that_was_cut_short_goes_on(
    stage: int,
    tokens: Tensor,
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense, other = (open_model(tiny_folder(seed=seed)).streamed(device="cpu") for seed in (0, 1))
    whole = beside(other, dense, [tokens], [4])
    keep, done = Kept.layer, []

    def layer(self: Kept, index: int, *args: Any) -> None:
        keep(self, index, *args)
        done.append(index)
        if len(done) == stage:
            raise KeyboardInterrupt

    with Store(tmp_path / "store") as store:
        monkeypatch.setattr(Kept, "layer", layer)
        with pytest.raises(KeyboardInterrupt):
            beside(other, dense, [tokens], [4], store=store)
        assert beside(other, dense, [tokens], [4], store=store) == whole
        assert len(done) == 6  # three layers of two models, none of them twice
        assert beside(other, dense, [tokens], [4], store=store) == whole
        assert len(done) == 6
