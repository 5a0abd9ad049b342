"""Log-likelihoods from one walk equal those of the whole model, one request at a time."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import EVERY_FAMILY, tiny_model
from secateur.checkpoint import Store
from secateur.errors import SecateurError
from secateur.evaluation import likelihood, log_likelihoods
from secateur.evaluation.likelihood import padded_length
from secateur.models import open_model

Request = tuple[list[int], list[int]]


def requests(count: int = 40, seed: int = 0, longest: int = 70) -> list[Request]:
    """Queries with four choices each: some of one token, some that begin with one another."""
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(3, 128) for _ in range(draw.randint(1, most))]

    made: list[Request] = []
    for _ in range(count // 4):
        query, choice = tokens(longest), tokens(8)
        made += [(query, choice), (query, [*choice, 7]), (query, [5]), (query, tokens(8))]
    return made


def whole(model: Any, asked: Sequence[Request], context: int) -> list[tuple[float, bool]]:
    """The other route: transformers alone, one sequence at a time."""
    found = []
    for before, after in asked:
        ids = torch.tensor([[*before, *after][-(context + 1) :]])
        with torch.no_grad():
            logs = model(ids[:, :-1]).logits[0, -len(after) :].double().log_softmax(-1)
        own = logs[torch.arange(len(after)), torch.tensor(after)]
        found.append((own.sum().item(), logs.argmax(-1).tolist() == after))
    return found


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_streamed_is_whole_request_by_request(variant: str) -> None:
    model, asked = tiny_model(variant), requests()
    source = open_model(model).streamed(device="cpu")
    found = log_likelihoods(source, asked, context=64, at_once=256)
    wanted = whole(model, asked, 64)
    assert [one.greedy for one in found] == [greedy for _, greedy in wanted]
    for one, (value, _) in zip(found, wanted, strict=True):
        assert one.value == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_what_is_likeliest_is_told() -> None:
    model, query = tiny_model(), [9, 8, 7, 30, 31]
    with torch.no_grad():
        best = model.generate(
            torch.tensor([query]), max_new_tokens=3, do_sample=False, eos_token_id=None
        )
    best = best[0, 5:].tolist()
    asked = [(query, best), (query, best[:1]), (query, [best[0], (best[1] + 1) % 128])]
    source = open_model(model).streamed(device="cpu")
    found = log_likelihoods(source, asked, context=64, at_once=64)
    assert [one.greedy for one in found] == [True, True, False]


def test_batches_and_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = open_model(tiny_model()).streamed(device="cpu"), requests()
    once = log_likelihoods(source, asked, context=64, at_once=4096)
    monkeypatch.setattr("secateur.stats.loss._AT_ONCE", 1)
    monkeypatch.setattr("secateur.stats.blocks._VALUES", 1)
    monkeypatch.setattr("secateur.evaluation.likelihood._SHORTEST", 1)
    for one, other in zip(
        log_likelihoods(source, asked, context=64, at_once=1, limit=0), once, strict=True
    ):
        assert one.value == pytest.approx(other.value, abs=1e-4)
        assert one.greedy == other.greedy


def test_no_sequence_is_run_that_another_one_begins_with() -> None:
    query = [3, 4, 5, 6]
    asked = [(query, [9]), (query, [8]), (query, [9, 10]), ([3], [4])]
    (one,) = likelihood._sets(asked, 64)
    assert one.tokens.tolist() == [[*query, 9] + [9] * 11]
    assert len(one.row) == 5


def test_lengths_are_near_what_they_pad() -> None:
    for length in range(16, 3000):
        assert length <= padded_length(length, 4096) <= length * 1.25
    assert padded_length(63, 63) == 63
    assert len({padded_length(length, 4096) for length in range(1, 4097)}) < 40


def test_what_was_found_is_kept(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = open_model(tiny_folder()).streamed(device="cpu"), requests()
    with Store(tmp_path / "store") as store:
        kept = {"context": 64, "at_once": 256, "store": store}
        first = log_likelihoods(source, asked, **kept)
        monkeypatch.setattr(likelihood, "last_states", None)  # no layer is read again
        assert log_likelihoods(source, asked, **kept) == first


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (([], [3]), "1 tokens after 0"),
        (([3], []), "0 tokens after 1"),
        (([3], [4] * 65), "65 tokens .* reads 64"),
    ],
)
def test_what_cannot_be_scored_is_refused(asked: Request, says: str) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    with pytest.raises(SecateurError, match=says):
        log_likelihoods(source, [asked], context=64, at_once=64)


def test_nothing_asked_is_nothing_found() -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    assert log_likelihoods(source, [], context=64, at_once=64) == []
