"""Streamed perplexity equals that of the whole model, by its own loss."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from conftest import ALL, tiny_model
from secateur.checkpoint import Kept, Store
from secateur.errors import SecateurError
from secateur.evaluation import perplexities, perplexity, window_lengths
from secateur.models import open_model
from secateur.stats import activations, stream


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("variant", ALL)
def test_streamed_perplexity_equals_the_models_own_loss(
    variant: str, batch: int, tokens: Tensor
) -> None:
    model = tiny_model(variant)
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss.item()
    found = perplexity(open_model(model).streamed(device="cpu"), tokens, batch=batch)
    assert math.isclose(found.value, math.exp(loss), rel_tol=1e-5)
    assert (found.window, found.tokens) == (24, 6 * 23)


def test_pieces_of_the_logits_do_not_matter(tokens: Tensor, monkeypatch: Any) -> None:
    from secateur.evaluation import perplexity as function

    source = open_model(tiny_model()).streamed(device="cpu")
    whole = function(source, tokens, batch=6)
    monkeypatch.setattr("secateur.stats.loss._AT_ONCE", 1)
    monkeypatch.setattr("secateur.stats.blocks._VALUES", 1)
    assert math.isclose(function(source, tokens, batch=6).value, whole.value, rel_tol=1e-6)


@pytest.mark.parametrize("ahead", [0, 1])
def test_of_two_sets_in_one_walk_one_may_be_further(
    ahead: int,
    tokens: Tensor,
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = open_model(tiny_folder()).streamed(device="cpu")
    sets = [tokens, tokens.flatten()[: 8 * 18].view(8, 18)]
    alone = [perplexity(source, one, batch=4) for one in sets]
    keep = Kept.layer

    def layer(self: Kept, index: int, *args: Any) -> None:
        keep(self, index, *args)
        if index == 1:
            raise KeyboardInterrupt

    with Store(tmp_path / "store") as store:
        monkeypatch.setattr(Kept, "layer", layer)
        with pytest.raises(KeyboardInterrupt):
            perplexity(source, sets[ahead], batch=4, store=store)
        monkeypatch.setattr(Kept, "layer", keep)
        assert perplexities(source, sets, [4, 4], store=store) == alone


def test_two_sets_share_the_memory_for_hidden_states(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Seen(activations.Activations):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self.mapped)

    monkeypatch.setattr(stream, "Activations", Seen)
    source = open_model(tiny_model()).streamed(device="cpu")
    one = tokens.numel() * 48 * 4
    for limit, expected in ((2 * one, [False] * 2), (2 * one - 2, [True] * 2)):
        made.clear()
        perplexities(source, [tokens, tokens], [4, 4], limit=limit)
        assert made == expected


def test_windows_are_cut_down_to_the_context() -> None:
    assert window_lengths(4096) == (128, 2048)
    assert window_lengths(512) == (128, 512)
    assert window_lengths(64) == (64,)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tokens: Tensor) -> None:
    model = tiny_model()
    model.lm_head.weight.data.zero_()
    found = perplexity(open_model(model).streamed(device="cpu"), tokens, batch=6)
    assert math.isclose(found.value, 128, rel_tol=1e-6)


def test_nothing_to_predict_is_an_error(tokens: Tensor) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    with pytest.raises(SecateurError, match="at least one window of two tokens"):
        perplexity(source, tokens[:, :1], batch=1)


def test_evaluate_says_which_windows_it_used(tiny_folder: Any, text_file: Any) -> None:
    found = secateur.evaluate(tiny_folder(), str(text_file), device="cpu")
    assert [entry.window for entry in found] == [64]
    found = secateur.evaluate(
        tiny_folder(), str(text_file), evaluate_lengths=[16, 32], evaluate_tokens=100
    )
    assert [(entry.window, entry.tokens) for entry in found] == [(16, 90), (32, 93)]
