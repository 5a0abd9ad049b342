"""Of the places of examples a part is drawn by chance; a loss is taken there and nowhere else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from short_training import trainer
from torch import nn

from conftest import Cut, tiny_model
from secateur.config import make_recover_config
from secateur.data import IGNORED, Beginning, Examples
from secateur.models import open_model
from secateur.pipeline.training import make_schedule
from secateur.pipeline.training_data import TrainingData
from secateur.progress import telling
from secateur.recovery import CachedDistillation, drawn
from secateur.stats import Walk

SHARE = 0.3


def ragged() -> Examples:
    """Examples with 20, 7, 1 and no places."""
    ids = torch.randint(3, 128, (4, 21), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, 0] = IGNORED
    labels[1, 8:] = IGNORED
    labels[2, :20] = IGNORED
    labels[3] = IGNORED
    return Examples(ids, labels)


def test_so_many_places_of_each_example_are_drawn_and_nothing_else_changes() -> None:
    data = ragged()
    some = drawn(data, SHARE, 5)
    kept = some.labels != IGNORED
    assert kept.sum(dim=1).tolist() == [6, 3, 1, 0]  # rounded up
    assert torch.equal(some.labels[kept], data.labels[kept])
    assert torch.equal(some.ids, data.ids)
    assert torch.equal(some.labels, drawn(data, SHARE, 5).labels)
    assert not torch.equal(some.labels, drawn(data, SHARE, 6).labels)
    assert drawn(data, 1.0, 5) is data


def test_each_place_is_drawn_as_often_as_any_other() -> None:
    data, draws = ragged(), 2000
    often = sum((drawn(data, SHARE, seed).labels != IGNORED).float() for seed in range(draws))
    shares = [row[row > 0] / draws for row in torch.as_tensor(often)]
    assert [len(row) for row in shares] == [20, 7, 1, 0]
    for row, share in zip(shares, (6 / 20, 3 / 7, 1, 1), strict=True):
        assert torch.allclose(row, torch.tensor(float(share)), atol=0.05)


def test_the_loss_is_that_of_the_places_drawn() -> None:
    made, _ = trainer(places=SHARE)
    held = torch.arange(19, 23)
    some = drawn(made._data[held], SHARE, made._schedule.seed)
    with torch.no_grad():
        by_hand = nn.functional.cross_entropy(
            made._model(input_ids=some.ids).logits[:, :-1].flatten(0, 1),
            some.labels[:, 1:].flatten(),
            ignore_index=IGNORED,
        )
    assert made.loss(held) == pytest.approx(by_hand.item(), rel=1e-5)
    assert made.loss(held) == made.loss(held), "checks compare the same places"


def test_every_step_draws_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def counted(data: Examples, share: float, seed: int) -> Examples:
        seeds.append(seed)
        return drawn(data, share, seed)

    monkeypatch.setattr("secateur.recovery.schedule.drawn", counted)
    made, _ = trainer(places=SHARE)
    for step in (0, 1, 2, 1):
        made.step(step)
    assert len(set(seeds)) == 3
    assert seeds[1] == seeds[3]


def test_the_mean_gradient_of_the_draws_is_that_of_all_places() -> None:
    """Of what a draw leaves out nothing is missing in the mean."""

    def gradients(share: float, seed: int) -> torch.Tensor:
        made, plain = trainer(places=share, seed=seed, batch=99, rate=1e-9)
        made.step(0)
        return torch.cat(
            [p.grad.flatten() for p in plain.parameters.values() if p.grad is not None]
        )

    whole = gradients(1.0, 0)
    draws = torch.stack([gradients(0.6, seed) for seed in range(40)])
    assert nn.functional.cosine_similarity(draws[0], whole, dim=0) < 0.95
    assert nn.functional.cosine_similarity(draws.mean(dim=0), whole, dim=0) > 0.99


def test_a_training_cut_short_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, plain = trainer(places=SHARE)
    whole.run()
    store = tmp_path / "state"
    with telling(Cut(7)), pytest.raises(KeyboardInterrupt):
        trainer(places=SHARE, store=store)[0].run()
    again, other = trainer(places=SHARE, store=store)
    again.run()
    assert all(torch.equal(one, other.tensors()[name]) for name, one in plain.tensors().items())
    assert not all(
        torch.equal(one, trained)
        for one, trained in zip(plain.tensors().values(), _all_places(), strict=True)
    )


def _all_places() -> Any:
    made, plain = trainer()
    made.run()
    return plain.tensors().values()


@pytest.mark.parametrize("steps", [2, 12])
def test_a_teacher_that_is_asked_before_what_is_told_ever_teaches_the_same(steps: int) -> None:
    """It is never looked up elsewhere; there it says what nobody could learn from."""
    source = open_model(tiny_model(seed=1)).streamed(device="cpu")
    trained = []
    for everything in (True, False):
        made, plain = trainer(places=SHARE, steps=steps)
        data, schedule = made._data, made._schedule
        told = schedule.told_ever(data, 4)
        assert told[:, 1:].float().mean() < 0.9
        cached = CachedDistillation(
            Walk(source, data.ids, batch=5), 20, None if everything else told
        )
        if not everything:
            for kept in (cached._tokens.tensor, cached._logs.tensor):
                kept[~told[:, 1:]] = 99
        made._objective = cached
        trained.append((made.run().checks, plain.tensors()))
    (checks, tensors), (others, other) = trained
    assert checks == others
    assert all(torch.equal(tensor, other[name]) for name, tensor in tensors.items())


def test_what_is_told_ever_is_what_has_a_label_if_all_places_are_taken() -> None:
    data = ragged()
    schedule = trainer()[0]._schedule
    assert torch.equal(schedule.told_ever(data, 1), data.labels != IGNORED)


@pytest.mark.parametrize(
    ("vocabulary", "settings", "share"),
    [
        (128, {}, 1.0),
        (16384, {}, None),
        (16384, {"places": 0.9}, 0.9),
        (16384, {"places": 1}, 1.0),
        (16384, {"loss": "next-token", "train": "lora", "recipe": "lora"}, 1.0),
        (128, {"places": 0.25, "recipe": "lora"}, 0.25),
    ],
)
def test_a_distillation_takes_what_makes_the_head_cost_no_more_than_the_layers(
    vocabulary: int, settings: dict[str, Any], share: float | None
) -> None:
    model = tiny_model(vocab_size=vocabulary)
    if share is None:
        layers = sum(p.numel() for p in model.model.layers.parameters())
        share = layers / model.lm_head.weight.numel()
        assert 0.01 < share < 0.5
    config = make_recover_config(model="x", **settings)
    student: Any = SimpleNamespace(opened=open_model(model), config=config)
    given = TrainingData(ragged(), 1, "", None, Beginning())
    assert make_schedule(student, given).places == pytest.approx(share)
