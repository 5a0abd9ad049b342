"""Ranks that train together, as threads: what each does and decides is what one alone would."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_ranks import Thread, side_by_side
from torch import Tensor

from conftest import tiny_model
from recovery.short_training import trainer
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.progress import telling
from secateur.ranks import this
from secateur.recovery import CachedDistillation, saving
from secateur.recovery.state import Spread, State, write_state
from secateur.recovery.together import Copies
from secateur.stats import Walk

LONG = {"steps": 12, "rate": 0.15}


def recorded(together: Copies) -> list[tuple[float, float]]:
    """The loss of every step to come, and the norm of its gradient."""
    sums: list[tuple[float, float]] = []
    own = together.step_sums

    def step_sums(losses: Any) -> tuple[float, float]:
        sums.append(own(losses))
        return sums[-1]

    together.step_sums = step_sums  # type: ignore[method-assign]
    return sums


def curve(outcome: Any) -> list[float]:
    return [value for check in outcome.checks for value in (check.trained or 0.0, check.held_out)]


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)


@pytest.mark.parametrize(("count", "batch"), [(2, 5), (3, 5), (3, 2)])
def test_the_curve_is_that_of_one(count: int, batch: int) -> None:
    """Steps of 5 are no even share; of 2 a rank has none.

    A gradient that is divided by ranks would train alike, for Adam knows no size.
    """
    made, plain = trainer(batch=batch)
    sums = recorded(made._together)
    alone = made.run()
    trainers = [trainer(batch=batch) for _ in range(count)]  # not by threads

    def run() -> Any:
        made, _ = trainers[this().index]
        made._together = Copies(made._parameters)
        return recorded(made._together), made.run()

    done = side_by_side(count, run)
    outcomes = [outcome for _, outcome in done]
    for own, outcome in done:
        assert torch.allclose(torch.tensor(own), torch.tensor(sums), rtol=1e-3)
        assert curve(outcome) == pytest.approx(curve(alone), abs=1e-4)
        assert outcome.checks == outcomes[0].checks, "to the bit"
        assert (outcome.tokens, outcome.best_step) == (alone.tokens, alone.best_step)
    for _, other in trainers:
        assert close(other.tensors(), plain.tensors())


def test_nan_on_one_rank_stops_all_at_the_same_step() -> None:
    trainers = [trainer() for _ in range(2)]

    def run() -> Any:
        made, _ = trainers[this().index]
        made._together = Copies(made._parameters)
        plain = made._objective

        def broken(batch: Any) -> Any:
            loss = plain(batch)
            bad = this().index and made._outcome.steps == 3

            def lost(logits: Tensor, piece: slice) -> Tensor:
                return loss(logits, piece) * (math.nan if bad and logits.requires_grad else 1.0)

            return lost

        made._objective = broken
        return made.run()

    for outcome in side_by_side(2, run):
        assert outcome.stopped == "the loss of step 4 is NaN or infinite"


def test_ranks_draw_other_dropout_and_the_first_what_one_alone_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainers = [trainer()[0] for _ in range(4)]
    for index, made in enumerate(trainers[:3]):
        made._together = Copies(made._parameters, Thread(index, 3, None))
        monkeypatch.setattr(made._together, "step_sums", lambda _: (0.0, 0.0))
    seeds: list[int] = []
    monkeypatch.setattr("secateur.recovery.trainer.torch.manual_seed", seeds.append)
    for made in trainers:
        made.step(4)
    assert len(set(seeds)) == 3
    assert seeds[0] == seeds[3]


@pytest.mark.parametrize(("count", "after"), [(2, 3), (3, 1), (1, 2), (1, 3)])
def test_the_state_of_some_is_gone_on_with_by_others(
    count: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks but the first have no file."""
    monkeypatch.setattr(saving, "_FREE", math.inf)
    alone, plain = trainer(**LONG)
    whole = alone.run()

    def begun(ranks: int, stop: int | None) -> list[Any]:
        stores = [tmp_path / "state", *[None] * (ranks - 1)]
        trainers = [trainer(**LONG, store=store, fingerprint="f") for store in stores]

        def run() -> Any:
            made, own = trainers[this().index]
            made._together = Copies(made._parameters)
            if stop is None:
                return made.run(), own
            for step in range(made._resume(), stop):
                made.step(step)
                made._check(step + 1)
                made._save()
            return None

        return side_by_side(ranks, run)

    begun(count, 7)
    found = begun(after, None)
    for outcome, own in found:
        assert outcome.checks == found[0][0].checks
        assert curve(outcome) == pytest.approx(curve(whole), abs=1e-4)
        assert close(own.tensors(), plain.tensors())


def test_a_damaged_state_is_told_by_all(tmp_path: Path) -> None:
    write_state(tmp_path / "state", State({"odd": torch.ones(1)}, {"best": "x"}), "f")

    stores = [tmp_path / "state", None]
    trainers = [trainer(store=store, fingerprint="f")[0] for store in stores]

    def run() -> str:
        made = trainers[this().index]
        made._together = Copies(made._parameters)
        with pytest.raises(SecateurError) as error:
            made.run()
        return str(error.value)

    said = side_by_side(2, run)
    assert said[0] == said[1]
    assert "--force" in said[0]


def test_a_full_disk_on_the_first_rank_leaves_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is spread is asked for to its end, by all ranks alike."""

    def full(*_: Any) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("secateur.recovery.state.header", full)
    rows = {"a": torch.ones(2, 3), "b": torch.ones(1, 3)}

    def save() -> tuple[int, list[str]]:
        asked = []

        def gathered(name: str) -> Tensor:
            asked.append(name)
            return this().gathered(name, rows[name])

        like = {name: torch.empty(4, 3, device="meta") for name in rows}
        store = tmp_path / "state" if this().first else None
        with telling() as told:
            keeper = saving.Saving(store, "f")
            for _ in range(2):
                keeper.save(Spread(like, gathered), Spread(like, gathered), {})
        assert asked == ["a", "b"], "once, and then no more"
        return len(asked), told.notes

    first, other = side_by_side(2, save)
    assert any("Cannot keep the state of training" in note for note in first[1])
    assert first[0] == other[0]


@pytest.mark.parametrize("count", [2, 3])
def test_every_rank_has_what_the_teacher_said_of_all_windows(count: int) -> None:
    tokens = torch.randint(3, 60, (7, 9), generator=torch.Generator().manual_seed(1))
    models = [open_model(tiny_model()).streamed() for _ in range(count)]
    told = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.6

    def found() -> CachedDistillation:
        return CachedDistillation(Walk(models[this().index], tokens, batch=2), 5, told)

    alone = found()
    places = told[:, 1:]
    for one in side_by_side(count, found):
        for part in ("_tokens", "_logs"):
            ours, theirs = getattr(one, part).tensor, getattr(alone, part).tensor
            assert torch.allclose(ours[places].float(), theirs[places].float(), atol=1e-2)
    tokens, told = tokens[: count - 1], told[: count - 1]  # fewer than ranks: each asks of all
    for one in side_by_side(count, found):
        assert torch.equal(one._tokens.tensor[told[:, 1:]], found()._tokens.tensor[told[:, 1:]])
