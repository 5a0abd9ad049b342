"""Training on CUDA: as on the CPU within rounding, and without waits; skipped without a device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import trainer
from torch import Tensor

import secateur
from conftest import ALL, Cut
from secateur.device_memory import free_bytes
from secateur.progress import telling
from secateur.recovery import Batch, Plain, Trainer, next_token
from secateur.recovery.passes import pieces

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CUDA = torch.device("cuda")


def on(device: torch.device, variant: str = "llama-gqa", **changes: Any) -> tuple[Trainer, Plain]:
    return trainer(variant=variant, device=device, **changes)


@pytest.mark.parametrize("variant", ALL)
def test_losses_are_the_same(variant: str) -> None:
    found = [on(device, variant, steps=4)[0].run() for device in (torch.device("cpu"), CUDA)]
    for here, there in zip(found[0].checks, found[1].checks, strict=True):
        assert here.held_out == pytest.approx(there.held_out, rel=1e-3)


def test_the_optimiser_is_fused_and_training_helps_in_bfloat16() -> None:
    made, _ = on(CUDA, autocast=torch.bfloat16, steps=30)
    assert all(group["fused"] for group in made._optimizer.param_groups)
    outcome = made.run()
    assert outcome.checks[-1].held_out < outcome.checks[0].held_out


def test_a_training_cut_short_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, plain = on(CUDA)
    whole.run()
    store = tmp_path / "state"
    first, _ = on(CUDA, store=store)
    with telling(Cut(7)), pytest.raises(KeyboardInterrupt):
        first.run()
    again, other = on(CUDA, store=store)
    again.run()
    for name, tensor in plain.tensors().items():
        assert torch.allclose(tensor, other.tensors()[name], atol=1e-6), name


def test_the_pieces_of_a_batch_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.recovery.passes._PIECE_GPU", 7 * 4 * 128)
    made, _ = on(CUDA)
    data = made._data
    batch = Batch.of(data, torch.arange(5), CUDA)
    told: Tensor = made.halves.hidden(batch.ids).flatten(0, 1)[batch.places].detach()
    loss_of = next_token(batch)

    def all_of_them() -> None:
        for piece in pieces(made.halves, told):
            leaf = told[piece].requires_grad_()
            loss_of(made.halves.logits(leaf), piece).backward()

    all_of_them()
    torch.cuda.set_sync_debug_mode("error")
    try:
        all_of_them()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recipe", ["distil", "lora", "groupwise"])
def test_recipes_run_with_layers_that_run_again(
    recipe: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    settings: dict[str, Any] = {"steps": 4, "batch": 4, "length": 16, "samples": 40, "group": 16}
    losses = []
    for recompute in ("never", "always"):
        done = secateur.recover(
            folder, out=tmp_path / recompute, recipe=recipe, data=str(text_file), device="cuda",
            evaluate="none", recompute=recompute, **settings,
        )  # fmt: skip
        losses.append([check["held_out"] for check in done.numbers["checks"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_what_is_left_on_the_device_shrinks_by_what_is_taken() -> None:
    before = free_bytes(CUDA)
    taken = torch.zeros(2**28, dtype=torch.uint8, device=CUDA)
    assert before - free_bytes(CUDA) >= 0.9 * taken.nbytes
