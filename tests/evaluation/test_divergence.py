"""KL of a streamed model to another: the same as of whole models."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import ALL, tiny_model
from secateur.evaluation import divergences
from secateur.models import open_model


def changed(model: Any) -> Any:
    """The same architecture with other weights."""
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + 0.2 * torch.randn(weight.shape, generator=draw))
    return other


def whole(one: Any, other: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        p, q = (model(tokens).logits.double().log_softmax(-1) for model in (one, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("variant", ALL)
def test_streamed_is_whole(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    other = changed(model)
    sources = [open_model(one).streamed(device="cpu") for one in (other, model)]
    dense = open_model(model).streamed(device="cpu")
    apart, same = divergences(dense, sources, tokens, batch=4)
    assert same == 0
    assert apart == pytest.approx(whole(model, other, tokens), rel=1e-3)
