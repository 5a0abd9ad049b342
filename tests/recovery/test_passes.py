"""Loss and gradient in pieces are those of the whole; what is at once there stays small."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import ALL, linears, logits, tiny_model
from secateur.data import IGNORED, Examples
from secateur.models import open_model
from secateur.recovery import (
    TOKENS_AT_ONCE,
    Batch,
    Halves,
    Lora,
    Plain,
    fits,
    kept_bytes,
    narrowed,
    next_token,
    recomputed,
)
from secateur.recovery.batch import micro_batches
from secateur.recovery.passes import backward, loss_of, pieces
from secateur.recovery.picked import picked_logs

CPU = torch.device("cpu")


def halves_of(model: Any) -> Halves:
    return Halves(model.eval(), torch.arange(3, 9).view(2, 3), nullcontext)


def data(tokens: Tensor) -> Examples:
    labels = tokens.clone()
    labels[:, :3] = IGNORED
    labels[1, 9:] = IGNORED
    labels[3] = IGNORED
    return Examples(tokens, labels)


def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.recovery.passes._PIECE", 7 * 4 * 128)
    monkeypatch.setattr("secateur.recovery.passes._ROWS", 1)


def by_hand(model: Any, given: Examples, share: float) -> Tensor:
    """The loss from whole logits, its gradient by plain autograd."""
    loss = nn.functional.cross_entropy(
        model(input_ids=given.ids).logits[:, :-1].flatten(0, 1),
        given.labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    (share * loss).backward()
    return loss.detach()


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("variant", ALL)
def test_the_halves_of_every_family_are_its_whole(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    halves = halves_of(model)
    assert halves.splits
    with torch.no_grad():
        hidden = halves.hidden(tokens).flatten(0, 1)
        assert hidden.shape[1] != halves.vocabulary
        found = torch.cat([halves.logits(hidden[:5]), halves.logits(hidden[5:])])
    assert torch.allclose(found.view(*tokens.shape, -1), logits(model, tokens), atol=1e-5)


@pytest.mark.parametrize("variant", ["llama-gqa", "llama-tied", "gemma2", "gpt2", "opt", "cohere"])
def test_loss_and_gradient_in_pieces_are_those_of_the_whole(
    variant: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_pieces(monkeypatch)
    model = tiny_model(next(name for name in ALL if name.startswith(variant)))
    model.requires_grad_(True)
    given = data(tokens)
    loss = by_hand(model, given, 0.25)
    expected = gradients(model)
    halves = halves_of(model)
    batch = Batch.of(given, torch.arange(len(tokens)), CPU)
    losses = backward(halves, next_token, batch, 0.25)
    assert len(losses) > 1
    assert float(sum(losses)) == pytest.approx(float(loss), rel=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys()
    near = 1e-6 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=near), name
    held_out = loss_of(halves, next_token, batch)
    assert float(sum(held_out)) == pytest.approx(float(loss), rel=1e-5)


def test_logits_are_made_of_labelled_places_alone_and_never_of_all(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_pieces(monkeypatch)
    model = tiny_model()
    model.get_output_embeddings().requires_grad_(False)
    halves, given = halves_of(model), data(tokens)
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: rows.append(output.shape[:-1].numel())
    )
    backward(halves, next_token, Batch.of(given, torch.arange(len(tokens)), CPU), 1.0)
    assert max(rows) == 7
    assert sum(rows) == given.tokens < tokens.numel()


@pytest.mark.parametrize(("vocabulary", "rows"), [(49_152, 170), (262_144, 128), (2**21, 128)])
def test_a_piece_has_rows_enough_for_the_head_to_be_worth_reading(
    vocabulary: int, rows: int
) -> None:
    """32 MiB of logits on a CPU, or where the vocabulary is large 128 rows."""
    halves = halves_of(tiny_model().requires_grad_(False))
    halves.vocabulary = vocabulary
    found = pieces(halves, torch.empty(1000, 8))
    assert [piece.stop - piece.start for piece in found[:-1]] == [rows] * (len(found) - 1)
    assert (found[0].start, found[-1].stop) == (0, 1000)


def test_a_head_that_is_trained_goes_in_fewer_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each adds a gradient as large as the head to the one before."""
    in_small_pieces(monkeypatch)
    model = tiny_model().requires_grad_(True)
    halves = halves_of(model)
    told = torch.zeros(100, 48)
    sizes = [piece.stop - piece.start for piece in pieces(halves, told)]
    assert sizes == [48, 48, 4]
    model.requires_grad_(False)
    assert len(pieces(halves, told)) == 15


def test_a_model_whose_forward_does_more_than_its_halves_runs_whole(tokens: Tensor) -> None:
    model = tiny_model()
    model.requires_grad_(True)
    plain = model.forward

    def shifted(input_ids: Tensor, **more: Any) -> Any:
        output = plain(input_ids=input_ids, **more)
        output.logits = output.logits * (1 + input_ids[..., None] % 5)
        return output

    model.forward = shifted
    loss = by_hand(model, data(tokens), 1.0)
    expected = gradients(model)
    halves = halves_of(model)
    assert not halves.splits
    losses = backward(halves, next_token, Batch.of(data(tokens), torch.arange(6), CPU), 1.0)
    assert float(sum(losses)) == pytest.approx(float(loss), rel=1e-5)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("values", [1, 4 * 40, 2**18])  # of a block: rows of one thread, 4, all
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_picked_log_probabilities_are_those_of_the_softmax(
    dtype: torch.dtype, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.stats.blocks._VALUES", values)
    given = (5 * torch.randn(6, 40)).to(dtype)
    tokens = torch.randint(0, 40, (6, 5))
    tokens[:, 1] = tokens[:, 0]  # twice the same: its gradients add up
    weights = torch.randn(6, 5)
    found = []
    for take in (picked_logs, lambda z, t: z.float().log_softmax(-1).gather(-1, t)):
        logits = given.clone().requires_grad_()
        logs = take(logits, tokens)
        (logs * weights).sum().backward()
        found.append((logs.detach(), logits.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        near = 1e-5 if dtype == torch.float32 else 1e-2
        assert torch.allclose(ours.float(), theirs.float(), atol=near)
    sure = torch.tensor([[200.0, 0.0]])  # a probability that fp32 has no number for
    assert float(picked_logs(sure, torch.tensor([[1]]))) == -200


def of_lengths(lengths: list[int], longest: int) -> Examples:
    return Examples.padded([([5] * length, 0) for length in lengths], longest)


def test_as_many_examples_go_at_once_as_are_a_number_of_tokens() -> None:
    windows = of_lengths([256] * 20, 256)
    rows = torch.randperm(20)
    parts = list(micro_batches(windows, rows, None))
    assert [len(part) for part in parts] == [8, 8, 4]
    assert torch.equal(torch.cat(parts), rows)  # of one length: in their order
    lengths = [*torch.randint(1, 900, (40,)).tolist(), 5000]
    mixed = of_lengths(lengths, 5000)
    parts = list(micro_batches(mixed, torch.arange(41), None))
    assert sorted(torch.cat(parts).tolist()) == list(range(41))
    padded = [max(lengths[row] for row in part.tolist()) * len(part) for part in parts]
    assert max(padded[:-1]) <= TOKENS_AT_ONCE < padded[-1]
    assert len(parts[-1]) == 1  # too long for itself: alone
    in_order = sum(
        max(lengths[row] for row in part) * len(part)
        for part in (range(start, min(start + 8, 41)) for start in range(0, 41, 8))
    )
    assert sum(padded) < in_order  # less padding
    assert [len(part) for part in micro_batches(mixed, torch.arange(41), 16)] == [16, 16, 9]


@pytest.mark.parametrize("trained", ["consumers", "lora"])
def test_layers_that_run_again_keep_less_and_give_the_same(trained: str, tokens: Tensor) -> None:
    model = tiny_model()
    opened = open_model(model)
    if trained == "lora":
        parameters = dict(
            Lora(model, linears(opened), rank=2, alpha=4.0, dropout=0.5, seed=0).parameters
        )
    else:
        names = sorted({axis.consumer.tensor for axis in opened.structure.axes})
        parameters = Plain(model, names).parameters
    halves, batch = halves_of(model), Batch.of(data(tokens), torch.arange(6), CPU)
    dropouts = [m for name, m in model.named_modules() if "lora_dropout" in name]
    found, kept = [], []
    for again in (False, True):
        if again:
            recomputed(model.get_submodule(opened.family.layers))
        kept.append(kept_bytes(halves, tokens))
        for module in dropouts:
            module.train()
        torch.manual_seed(0)
        losses = backward(halves, next_token, batch, 1.0)
        for module in dropouts:
            module.eval()
        found.append((torch.stack(losses), gradients(model)))
        assert float(sum(loss_of(halves, next_token, batch))) > 0
    assert kept[1] < kept[0] / 3
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(found[0][1]) == len(parameters)
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_what_layers_keep_grows_with_the_tokens_and_not_with_the_weights(tokens: Tensor) -> None:
    model = tiny_model()
    model.requires_grad_(True)
    halves = halves_of(model)
    one, two = (kept_bytes(halves, tokens[:count]) for count in (1, 2))
    assert one < two <= 2 * one
    weights = sum(p.nbytes for p in model.parameters())
    assert two - one < weights
    linear = nn.Linear(64, 8)
    simple: Any = type("Simple", (), {
        "hidden": lambda self, ids: linear(ids.float()).tanh(),
        "storages": halves_of_parameters(linear),
    })()  # fmt: skip
    # the input in fp32 and what tanh gave: the weight is no part of it
    assert kept_bytes(simple, torch.ones(4, 64)) == 4 * 8 * 4 + 4 * 64 * 4


def halves_of_parameters(module: nn.Module) -> frozenset[int]:
    return frozenset(p.untyped_storage().data_ptr() for p in module.parameters())


def test_whether_it_fits_counts_gradients_and_moments() -> None:
    trained = [torch.zeros(100)]  # 400 bytes, and 1200 to come
    assert fits(600, trained, 2200)
    assert not fits(601, trained, 2200)
    assert not fits(1, trained, 1200)


def test_frozen_linears_in_the_dtype_of_the_passes_give_the_same_to_the_bit(
    tokens: Tensor,
) -> None:
    found = []
    for narrow in (False, True):
        model = tiny_model("llama-tied")
        opened = open_model(model)
        plain = Plain(model, sorted({axis.consumer.tensor for axis in opened.structure.axes}))
        if narrow:
            narrowed(model, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=tokens).logits
        output.float().logsumexp(-1).sum().backward()
        found.append((output.detach(), {n: p.grad for n, p in plain.parameters.items()}))
        dtypes = {n: p.dtype for n, p in model.named_parameters(remove_duplicate=False)}
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(g, found[1][1][name]) for name, g in found[0][1].items())
    assert dtypes["lm_head.weight"] == torch.bfloat16
    assert dtypes["model.embed_tokens.weight"] == torch.float32
    assert all(dtypes[name] == torch.float32 for name in found[0][1])
