"""Parts of a layer without the rest: the same to the bit, and each run once."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import VARIANTS, tiny_model
from secateur.models import OpenModel, open_model
from secateur.stats import LayerStep, Walk
from secateur.stats.stream import hidden_of
from secateur.structure import Plan
from secateur.surgery import Repaired, replay, sequential_repair
from secateur.surgery.observe import Consumer
from secateur.surgery.replay import Block, anatomy, inputs_of, replayed


def consumers_of(opened: OpenModel, step: LayerStep) -> list[Consumer]:
    axes = [a for a in opened.structure.axes if a.layer == step.index]
    linears = [a for a in axes if a.consumer.parameter == "weight"]
    return [Consumer.of(axis, Plan({}, "", ""), step.module) for axis in linears]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_layer_whose_blocks_are_replayed_gives_the_same_to_the_bit(
    variant: str, tokens: Tensor
) -> None:
    opened = open_model(tiny_model(variant))
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=len(tokens))
    dense = walk.embed()
    for step in walk.layers():
        _, hidden, call = next(step.batches(dense))
        consumers = consumers_of(opened, step)
        found = anatomy(step.module, hidden, call, consumers)
        outputs = {found.blocks[name]: given for name, given in found.seen.outputs.items()}
        with replayed(outputs), torch.no_grad():
            again = hidden_of(step.module(hidden, *call[0], **call[1]))
        assert torch.equal(again, found.seen.after)
        assert "forward" not in {name for m in step.module.modules() for name in m.__dict__}
        for consumer in consumers:
            reached = inputs_of(step.module, hidden, call, consumer)
            assert torch.equal(reached, found.seen.inputs[consumer.name])
        step.run(dense)


def test_the_block_is_the_attention_or_the_mlp_where_that_gives_nothing_else(
    tokens: Tensor,
) -> None:
    opened = open_model(tiny_model("llama-gqa"))
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=len(tokens))
    dense = walk.embed()
    for step in walk.layers():
        _, hidden, call = next(step.batches(dense))
        found = anatomy(step.module, hidden, call, consumers_of(opened, step))
        modules = [block.module for block in found.blocks.values()]
        assert modules == [step.module.self_attn, step.module.mlp]


def test_a_module_that_gives_more_is_no_block() -> None:
    linear, output = nn.Linear(2, 3), torch.randn(2, 4, 3)
    assert Block.of(linear, (output, output), output) is None
    assert Block.of(linear, output + 1, output) is None
    assert Block.of(linear, "nothing", output) is None
    flat = Block.of(linear, (output.flatten(0, 1), None), output)
    assert flat is not None
    given, none = flat.giving(output)
    assert given.shape == (8, 3)
    assert none is None


def repaired(opened: OpenModel, tokens: Tensor, source: Any = None) -> Repaired:
    keep = {a.name: tuple(range(a.units * 5 // 7)) for a in opened.structure.axes}
    plan = Plan(keep, opened.structure.architecture, opened.structure.weights)
    walk = Walk(source or opened.streamed(device="cpu"), tokens, batch=2)
    return sequential_repair(walk, opened.structure, plan, damping=0.1)


def test_both_streams_are_observed_once_a_layer(tokens: Tensor) -> None:
    opened = open_model(tiny_model("llama-gqa"))
    source = opened.streamed(device="cpu")
    ran: Counter[str] = Counter()
    for layer in source._layers:
        for part in (layer.self_attn.q_proj, layer.mlp.gate_proj):
            part.register_forward_hook(lambda module, *_: ran.update([str(module)]))
    repaired(opened, tokens, source)
    batches, layers, streams = len(tokens) // 2, 3, 2
    assert list(ran.values()) == [batches * layers * streams] * 2


@pytest.mark.parametrize("variant", ["llama-gqa", "falcon", "gpt_neox", "gemma2", "mixtral"])
def test_where_no_block_can_be_replayed_the_repair_is_the_same(
    variant: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(tiny_model(variant))
    wide = repaired(opened, tokens)
    monkeypatch.setattr(replay, "_around", lambda layer, consumer, consumers: [consumer.module])
    narrow = repaired(opened, tokens)
    assert wide.tensors.keys() == narrow.tensors.keys()
    for name, tensor in narrow.tensors.items():
        assert torch.equal(wide.tensors[name], tensor), name
