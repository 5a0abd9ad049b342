"""Adapters: merged equals unmerged, on layers of different widths."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import linears, logits
from secateur.checkpoint import View
from secateur.config import make_recover_config
from secateur.modeling_secateur import PackedLinear
from secateur.models import open_model
from secateur.pipeline.trainable import adaptable
from secateur.recovery import Groupwise, Lora, Plain

FAMILIES = ["llama-gqa", "qwen2-gqa", "mistral-gqa", "gemma2", "phi", "opt"]


def with_tensors(opened: Any, tensors: dict[str, Tensor]) -> Any:
    """The model with `tensors` in place of its own."""
    model = opened.whole(torch.float32)
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    return model


@pytest.mark.parametrize("variant", [*FAMILIES, "gpt2", "bloom"])
def test_merged_lora_equals_unmerged_on_layers_of_different_widths(
    variant: str, pruned: Any, tokens: Tensor
) -> None:
    opened = open_model(pruned(variant))
    model = opened.whole(torch.float32)
    dense = logits(model, tokens)
    lora = Lora(model, linears(opened), rank=3, alpha=6.0, dropout=0.1, seed=0)
    assert torch.equal(logits(model, tokens), dense)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in lora.parameters.items():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    changed = logits(model.eval(), tokens)
    assert not torch.allclose(changed, dense, atol=1e-3)
    merged = with_tensors(opened, lora.tensors(opened.weights))
    assert torch.allclose(logits(merged, tokens), changed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", FAMILIES)
def test_merged_few_bits_equal_unmerged_on_layers_of_different_widths(
    variant: str, pruned: Any, tokens: Tensor
) -> None:
    opened = open_model(pruned(variant))
    model = opened.whole(torch.float32)
    settings: dict[str, Any] = {"bits": 4, "group": 8, "grid": "min-max", "rank": 3, "alpha": 6.0}
    few = Groupwise(model, linears(opened), seed=0, **settings)
    generator = torch.Generator().manual_seed(1)
    codes = {path: model.get_submodule(path).codes.clone() for path in linears(opened)}
    for name, parameter in few.parameters.items():
        if name.endswith("lora_b"):
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    changed = logits(model, tokens)
    exact = {
        f"{path}.weight": model.get_submodule(path).quantised(merged=True).weight
        for path in linears(opened)
    }
    merged = logits(with_tensors(opened, exact), tokens)
    assert torch.allclose(merged, changed, rtol=1e-5, atol=1e-5)
    stored = few.packed()
    assert all(torch.equal(stored[path].codes, codes[path]) for path in codes)
    # zero points are stored in half precision
    small = logits(with_tensors(opened, few.tensors()), tokens)
    assert torch.allclose(small, changed, rtol=0, atol=0.02 * float(changed.abs().max()))


def test_training_starts_from_the_weights_as_stored_where_the_model_rounds_them(
    pruned: Any,
) -> None:
    opened = open_model(pruned())
    names = [f"{path}.weight" for path in linears(opened)]
    plain = Plain(opened.whole(torch.bfloat16), names, opened.weights)
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter, opened.weights.tensor(name).float())
    settings: dict[str, Any] = {"bits": 4, "group": 8, "grid": "min-max", "rank": 3, "alpha": 6.0}
    rounded, exact = (
        Groupwise(opened.whole(dtype), linears(opened), opened.weights, seed=0, **settings).packed()
        for dtype in (torch.bfloat16, torch.float32)
    )
    for path in exact:
        for part, tensor in exact[path].tensors.items():
            assert torch.equal(rounded[path].tensors[part], tensor)


def test_merged_weights_are_made_one_at_a_time_when_they_are_asked_for(pruned: Any) -> None:
    opened = open_model(pruned())
    lora = Lora(
        opened.whole(torch.float32), linears(opened), rank=2, alpha=4.0, dropout=0.0, seed=0
    )
    read: list[str] = []
    tensor = opened.weights.tensor
    merged = lora.tensors(View(opened.weights.specs, lambda n: read.append(n) or tensor(n)))
    first = next(iter(merged))
    assert len(read) <= 1  # the checker of types looks at one
    read.clear()
    assert first in merged
    assert merged[first].shape == opened.weights.specs[first].shape
    assert read == [first]
    with pytest.raises(KeyError):
        merged["lm_head.weight"]


@pytest.mark.parametrize("variant", ["llama-mqa", "llama-gqa", "qwen2-gqa"])
def test_every_linear_of_the_decoder_is_adapted_where_one_kv_group_is_left(
    variant: str, pruned: Any
) -> None:
    opened = open_model(pruned(variant, ratio=0.55, method="magnitude"))
    groups = [a for a in opened.structures.axes if a.granularity == "kv_group"]
    assert any(axis.units == 1 for axis in groups)
    expected = {
        path
        for path, module in opened.skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in path
    }
    for recipe in ("lora", "groupwise"):
        config = make_recover_config(model="x", recipe=recipe)
        assert set(adaptable(opened, config)) == expected


def test_a_group_larger_than_a_row_is_the_row(pruned: Any, tokens: Tensor) -> None:
    opened = open_model(pruned())
    settings: dict[str, Any] = {"bits": 3, "grid": "min-max", "rank": 2, "alpha": 4.0, "seed": 0}
    models = [opened.whole(torch.float32) for _ in range(2)]
    # the second would take terabytes, if memory went by the group
    few = [
        Groupwise(model, linears(opened), group=group, **settings)
        for model, group in zip(models, (512, 10**12), strict=True)
    ]
    one, other = (logits(model, tokens) for model in models)
    assert torch.equal(one, other)
    for path, packed in few[0].packed().items():
        same = few[1].packed()[path]
        assert torch.equal(packed.codes, same.codes)
        assert torch.equal(packed.weight(torch.float32), same.weight(torch.float32))
        layer = PackedLinear(packed.width, len(packed.codes), packed.bits, 10**12)
        for part, tensor in same.tensors.items():
            layer.get_buffer(part).copy_(tensor)
        assert torch.equal(layer.dequantised(torch.float32), packed.weight(torch.float32))
