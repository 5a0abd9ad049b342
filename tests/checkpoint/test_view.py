"""Views of weights: what a stack of them reads is what the same steps by hand make of tensors."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from secateur import SecateurError
from secateur.checkpoint import (
    PARTS,
    Packed,
    View,
    folder_view,
    held,
    module_view,
    only,
    renamed,
    together,
    unpacked_view,
    zero_filled,
)
from secateur.export.few_bits import with_codes
from secateur.surgery.knife import cut

Tensors = dict[str, Tensor]

_KEPT = torch.tensor([1, 0])


def tensors() -> Tensors:
    draw = torch.Generator().manual_seed(5)
    sizes = {"a.weight": (3, 5), "a.bias": (3,), "b.weight": (4, 3, 2), "scale": ()}
    return {name: torch.randn(size, generator=draw) for name, size in sizes.items()}


def counted(own: Mapping[str, Tensor]) -> tuple[View, Counter[str]]:
    """A view of tensors, and how often each was read whole."""
    seen: Counter[str] = Counter()

    def read(name: str) -> Tensor:
        seen[name] += 1
        return own[name]

    return View(held(own).specs, read, notes=("one",)), seen


# By name a function of views, and the same done to tensors by hand.
STEPS: dict[str, tuple[Callable[[View], View], Callable[[Tensors], Tensors]]] = {
    "renamed": (
        lambda view: renamed(view, {f"x.{name}": name for name in reversed(list(view.specs))}),
        lambda own: {f"x.{name}": own[name] for name in reversed(list(own))},
    ),
    "only": (
        lambda view: only(view, [name for name in view.specs if "bias" not in name]),
        lambda own: {name: tensor for name, tensor in own.items() if "bias" not in name},
    ),
    "together": (
        lambda view: together(view, held({next(iter(view.specs)): torch.ones(7)})),
        lambda own: {**own, next(iter(own)): torch.ones(7)},
    ),
    "zero_filled": (
        lambda view: zero_filled(view, {**held({"new": torch.ones(2, 3)}).specs, **view.specs}),
        lambda own: {"new": torch.zeros(2, 3), **own},
    ),
    "cut": (
        lambda view: cut(view, {n: {(0,): _KEPT} for n, s in view.specs.items() if s.shape}),
        lambda own: {n: t[[1, 0]] if t.dim() else t for n, t in own.items()},
    ),
    "emptied": (
        lambda view: cut(view, {next(iter(view.specs)): {(0,): _KEPT[:0]}}),
        lambda own: dict(list(own.items())[1:]),
    ),
}


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("first", STEPS)
def test_views_of_views_equal_the_steps_by_hand(first: str, second: str) -> None:
    own = tensors()
    view, seen = counted(own)
    for step in (first, second):
        view, own = STEPS[step][0](view), STEPS[step][1](own)
    assert not seen, "read before it was asked for"
    assert view.notes == ("one",)
    assert list(view.specs) == list(own)
    for name, tensor in own.items():
        assert torch.equal(view.tensor(name), tensor), name
        assert (view.specs[name].shape, view.specs[name].dtype) == (tensor.shape, tensor.dtype)
        assert view.specs[name].bytes == tensor.nbytes
    assert set(seen.values()) <= {1}, "read more than once"
    for name, tensor in own.items():
        assert torch.equal(view.head(name), tensor[:1] if tensor.dim() else tensor), name


def test_two_dimensions_are_cut_as_one() -> None:
    own = {"experts": tensors()["b.weight"]}  # [expert, channel, width]
    kept = torch.tensor([0, 2, 4, 5, 6, 8, 9, 11])  # two channels of each expert
    found = cut(held(own), {"experts": {(0, 1): kept}})
    assert found.specs["experts"].shape == (4, 2, 2)
    by_hand = own["experts"].reshape(12, 2)[kept].reshape(4, 2, 2)
    assert torch.equal(found.tensor("experts"), by_hand)


def test_a_folder_is_read_row_by_row_and_a_module_is_not_copied(tmp_path: Path) -> None:
    own = tensors()
    (tmp_path / "config.json").write_text("{}")
    save_file(own, tmp_path / "model.safetensors")
    view = folder_view(tmp_path)
    for name, tensor in own.items():
        assert torch.equal(view.tensor(name), tensor)
        if tensor.dim():
            assert torch.equal(view.rows(name, 1, 3), tensor[1:3])
        assert torch.equal(view.head(name), tensor[:1] if tensor.dim() else tensor)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    module[1].weight = module[0].weight
    live = module_view(module)
    assert list(live.specs) == ["0.weight", "0.bias", "1.bias"]
    assert live.tensor("0.bias").data_ptr() == module[0].bias.data_ptr()


def test_the_head_of_a_view_is_read_without_the_rest() -> None:
    view, seen = counted(tensors())
    apart = View(view.specs, view.read, lambda name: torch.zeros(1))
    stacked = together(only(renamed(apart, {"x": "a.weight"}), ["x"]), held({"y": torch.ones(2)}))
    assert torch.equal(stacked.head("x"), torch.zeros(1))
    assert not seen


def test_packed_linears_come_back_in_their_place() -> None:
    draw = torch.Generator().manual_seed(2)
    codes = torch.randint(8, (3, 5), generator=draw, dtype=torch.uint8)
    scales, zeros = torch.rand(2, 3, 2, generator=draw)
    one = Packed.of(codes, scales, zeros, bits=3, group=4)
    view, seen = counted(tensors())
    stored = with_codes(view, {"a": one})
    first = [f"a.{part}" for part in PARTS]
    assert list(stored.specs) == [*first, *list(view.specs)[1:]]
    settings = {"bits": 3, "group": 4, "modules": {"a": 5}}
    back = unpacked_view(stored, settings, torch.float32)
    assert list(back.specs) == list(view.specs)
    assert torch.equal(back.tensor("a.weight"), one.weight(torch.float32))
    assert torch.equal(back.head("a.weight"), one.weight(torch.float32)[:1])
    assert back.specs["a.weight"] == view.specs["a.weight"]
    assert not seen


def test_without_a_reader_there_are_names_and_shapes_alone() -> None:
    view = only(View(held(tensors()).specs), ["a.weight"])
    assert view.specs["a.weight"].shape == (3, 5)
    with pytest.raises(SecateurError, match=r"only config\.json was opened"):
        view.tensor("a.weight")
    with pytest.raises(SecateurError, match=r"only config\.json was opened"):
        view.head("a.weight")
