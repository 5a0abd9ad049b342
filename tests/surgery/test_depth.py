"""What whole layers and blocks leave behind, and the fit before the gap."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from conftest import tiny_model
from secateur.checkpoint import Store
from secateur.config import make_config
from secateur.importance import IMPORTANCE
from secateur.models import OpenModel, open_model
from secateur.pipeline.idle import idle_settings
from secateur.search import one_by_one
from secateur.stats import Walk, collect, collect_gradients
from secateur.structure import Plan, Structure
from secateur.surgery import Repaired, sequential_repair, with_consumers
from secateur.surgery.depth import Depth, forget_streams, streams_after

# The part of the residual stream that the MLP of layer 1 alone writes to.
OWN = slice(40, 48)


def without(structure: Structure, *names: str) -> Plan:
    return Plan(dict.fromkeys(names, ()), structure.architecture, structure.weights)


def repaired(opened: OpenModel, plan: Plan, tokens: Tensor, **options: Any) -> Repaired:
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    names = ("layer", "attention_block", "mlp_block")
    chosen = with_consumers(opened.structures.select(names), opened.structures)
    return sequential_repair(walk, chosen, plan, **options)


def with_a_stream_of_its_own() -> Any:
    """Only layer 1's MLP writes to OWN, and it writes nowhere else."""
    model = tiny_model("llama-gqa")
    model.model.embed_tokens.weight.data[:, OWN] = 0
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.weight.data[OWN] = 0
        layer.mlp.down_proj.weight.data[OWN] = 0 if index != 1 else layer.mlp.down_proj.weight[OWN]
    others = torch.ones(48, dtype=torch.bool)
    others[OWN] = False
    model.model.layers[1].mlp.down_proj.weight.data[others] = 0
    return model


def test_a_layer_that_was_a_linear_map_of_the_mlp_before_it_is_repaired_exactly(
    tokens: Tensor,
) -> None:
    model = with_a_stream_of_its_own()
    opened = open_model(model)
    linear = torch.randn(8, 48, generator=torch.Generator().manual_seed(0)) / 4
    source = opened.streamed(device="cpu")

    def instead(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return args[0] + args[0][..., OWN] @ linear

    source._layers[2].register_forward_hook(instead)
    whole = with_consumers(opened.structures.select(["layer"]), opened.structures)
    plan = without(opened.structures, "layers.2.layer")
    found = sequential_repair(Walk(source, tokens, batch=4), whole, plan, damping=0.0)
    (report,) = [r for r in found.reports if r.module == "model.layers.1.mlp.down_proj"]
    assert report.before > 0.01
    assert report.after < 1e-9
    weight = model.model.layers[1].mlp.down_proj.weight.data
    expected = weight + linear.T @ weight[OWN]
    assert torch.allclose(found.tensors["model.layers.1.mlp.down_proj.weight"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama-gqa", "layers.1.layer"),
        ("llama-gqa", "layers.1.mlp_block"),
        ("granite", "layers.2.attention_block"),
        ("falcon", "layers.1.layer"),
        ("mixtral", "layers.1.layer"),  # experts before it: attention after it repays
    ],
)
def test_what_goes_is_missed_less_after_the_refit(
    variant: str, name: str, tokens: Tensor, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    """By the logits of the written folder, against leaving the gap as it is."""
    folder, dense = tiny_folder(variant), tiny_model(variant)
    opened = open_model(folder)
    if name not in opened.structures.by_name:
        raise AssertionError(f"{variant} has no {name}")
    plan = without(opened.structures, name)
    errors = {}
    with torch.no_grad():
        expected = dense(tokens).logits
        for repair in ("none", "refit"):
            out = tmp_path / repair
            secateur.apply(
                plan,
                folder,
                out=out,
                granularity=name.rpartition(".")[2],
                repair=repair,
                calibration=str(text(tmp_path)),
                samples=64,
                length=24,
                evaluate="none",
            )
            errors[repair] = float((secateur.load(out)(tokens).logits - expected).square().mean())
    assert errors["refit"] < errors["none"]


def text(folder: Path) -> Path:
    file = folder / "text.txt"
    drawn = torch.randint(32, 127, (8000,), generator=torch.Generator().manual_seed(3))
    file.write_text("".join(map(chr, drawn.tolist())), encoding="utf-8")
    return file


def test_gaps_are_found_between_the_sub_blocks_that_stay() -> None:
    opened = open_model(tiny_model("llama-gqa"))
    axes = with_consumers(opened.structures.select(["layer", "mlp_block"]), opened.structures).axes
    layers = without(opened.structures, "layers.1.layer", "layers.2.layer")
    assert Depth.of(axes, layers).gaps == {(0, "mlp"): (2, "mlp")}
    both = without(opened.structures, "layers.0.mlp_block", "layers.1.layer")
    assert Depth.of(axes, both).gaps == {(0, "attention"): (1, "mlp")}
    first = Depth.of(axes, without(opened.structures, "layers.0.mlp_block"))
    assert first.gaps == {(0, "attention"): (0, "mlp")}


def test_who_is_fitted_where_a_layer_goes(tokens: Tensor) -> None:
    opened = open_model(tiny_model("llama-gqa"))
    plan = without(opened.structures, "layers.1.layer")
    found = repaired(opened, plan, tokens, damping=0.01)
    assert {report.target for report in found.reports} == {"residual"}
    modules = [report.module for report in found.reports]
    assert not [module for module in modules if ".layers.1." in module]
    assert "model.layers.0.mlp.down_proj" in modules
    assert "model.layers.2.self_attn.o_proj" in modules


@pytest.mark.parametrize(
    ("granularity", "options", "message"),
    [
        ("layer", {"repair": "bias"}, "Type --repair refit --target residual"),
        ("layer", {"repair": "refit", "target": "own_output"}, "--target residual"),
        ("hidden", {"repair": "refit", "method": "magnitude"}, "Type --repair none"),
    ],
)
def test_repairs_that_do_not_mend_depth_are_refused(
    granularity: str, options: dict[str, Any], message: str, tiny_folder: Callable[..., Path]
) -> None:
    with pytest.raises(secateur.SecateurError, match=message):
        secateur.prune(
            tiny_folder(),
            ratio=0.2,
            granularity=granularity,
            calibration="embedded",
            **options,
        )


def test_a_fusion_is_not_taken_anew_and_the_scores_named_instead_exist(
    tiny_folder: Callable[..., Path],
) -> None:
    with pytest.raises(secateur.SecateurError, match="--rescore takes one score") as refused:
        secateur.prune(tiny_folder(), method="hywia", granularity="layer", rescore=True)
    cure = str(refused.value).partition("--importance")[2]
    assert {"taylor-first", "wifv"} <= set(re.findall(r"[a-z][\w-]+", cure)) & set(IMPORTANCE)


def test_scores_are_taken_anew_between_layers() -> None:
    """Of two layers that do the same either can go, and not both."""
    opened = open_model(tiny_model("llama-gqa", num_hidden_layers=5))
    axes = [axis for axis in opened.structures.axes if axis.granularity == "layer"]
    asked: list[frozenset[int]] = []

    def scores(gone: frozenset[int]) -> dict[str, Tensor]:
        asked.append(gone)
        worth = {1: 1.0, 2: 2.0, 3: 5.0, 4: 3.0} | ({2: 9.0} if 1 in gone else {})
        return {axis.name: torch.tensor([[worth[axis.layer]]]) for axis in axes}

    gone = one_by_one(axes, 2 * axes[0].cost, scores)
    assert [axis.layer for axis in gone] == [1, 4]
    assert asked == [frozenset(), frozenset({1})]  # no pass for a layer that cannot go


def test_a_walk_without_layers_is_the_walk_of_the_shorter_model(tokens: Tensor) -> None:
    model = tiny_model("llama-gqa")
    opened = open_model(model)
    axes = [axis for axis in opened.structure.axes if axis.layer != 1]
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=3, without=[1])
    needs = ("input_norm", "batch_first")
    found = collect(walk, axes, needs[:1])
    found.include(collect_gradients(walk, axes, needs[1:]))
    short = tiny_model("llama-gqa")
    del short.model.layers[1]
    short.config.num_hidden_layers = 2
    other = open_model(short)
    walk = Walk(other.streamed(device="cpu"), tokens, batch=3)
    expected = collect(walk, other.structure.axes, needs[:1])
    expected.include(collect_gradients(walk, other.structure.axes, needs[1:]))
    for axis, like in zip(axes, other.structure.axes, strict=True):
        for need in needs:
            assert torch.allclose(found[axis.name][need], expected[like.name][need], rtol=1e-4)


def test_rescored_layers_go_and_the_plan_says_so(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"samples": 8, "length": 16, "evaluate": "none"}
    result = secateur.prune(
        tiny_folder(num_hidden_layers=5),
        importance="wifv",
        search="AL-AM",
        repair="refit",
        granularity="layer",
        rescore=True,
        ratio=0.4,
        calibration=str(text(tmp_path)),
        out=tmp_path / "small",
        **options,
    )
    assert sum(not units for units in result.plan.keep.values()) == 2
    assert result.plan.settings["rescore"] is True
    assert secateur.load(tmp_path / "small").config.num_hidden_layers == 3


def nobodys_attention(opened: OpenModel) -> Structure:
    """The structure without the attention of layer 1, as if no unit owned it."""
    chosen = opened.structures.select(["layer", "mlp_block"])
    whole = with_consumers(chosen, opened.structures)
    axes = tuple(axis for axis in whole.axes if axis.name != "layers.1.attention")
    assert len(axes) < len(whole.axes)
    return replace(whole, axes=axes)


def test_what_stays_within_a_gap_is_not_fitted_to_twice(tokens: Tensor) -> None:
    """It comes after the MLP of layer 0, and adds what it adds itself."""
    model = tiny_model("llama-gqa")
    opened = open_model(model)
    axes = nobodys_attention(opened).axes
    depth = Depth.of(axes, without(opened.structures, "layers.1.mlp_block"))
    gave: list[Tensor] = []
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        hook = mlp.register_forward_hook(lambda _, args, output: gave.append(output))
        streams = model(tokens, output_hidden_states=True).hidden_states
        hook.remove()
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    found = streams_after(walk, [axis for axis in axes if not axis.of], depth)
    assert torch.allclose(found[0, "mlp"][:], streams[1] + gave[0], atol=1e-5)


def test_nothing_is_fitted_to_what_lies_beyond_a_module_that_stays(tokens: Tensor) -> None:
    opened = open_model(tiny_model("llama-gqa"))
    structure = nobodys_attention(opened)

    def repaired(*names: str) -> tuple[bool, tuple[str, ...]]:
        plan = without(opened.structures, *names)
        walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
        found = sequential_repair(walk, structure, plan, damping=0.01)
        return any(one.fitted for one in found.reports if ".layers.0." in one.module), found.notes

    fitted, notes = repaired("layers.1.mlp_block", "layers.2.layer")
    assert not fitted
    assert "no linear before it is fitted to what went up to the mlp of layer 2" in notes[0]
    assert repaired("layers.1.layer", "layers.2.layer") == (True, ())


def test_what_nothing_can_be_fitted_to_is_told(tokens: Tensor) -> None:
    opened = open_model(tiny_model("gemma2"))
    found = repaired(opened, without(opened.structures, "layers.2.layer"), tokens, damping=0.01)
    assert "no linear before it is fitted" in found.notes[0]


def test_settings_of_a_search_are_told_to_be_idle_where_layers_go_one_by_one() -> None:
    given: dict[str, Any] = {"model": "x", "method": "flap", "search": "global", "scale": "raw"}
    assert not idle_settings(make_config(**given, rescore=False))
    notes = idle_settings(make_config(**given, rescore=True))
    assert [note.partition(" ")[0] for note in notes] == ["--scale", "--search"]
    assert all("wifv, --rescore and bias do not ask for it" in note for note in notes)


def test_streams_that_were_forgotten_are_made_anew(tokens: Tensor, tmp_path: Path) -> None:
    opened = open_model(tiny_model("llama-gqa"))
    axes = opened.structures.axes
    depth = Depth.of(axes, without(opened.structures, "layers.1.layer"))
    fine = [axis for axis in axes if not axis.of]
    with Store(tmp_path / "store") as store:
        walk = Walk(opened.streamed(device="cpu"), tokens, batch=4, store=store)
        first = {k: v.tensor.clone() for k, v in streams_after(walk, fine, depth).items()}
        forget_streams(walk, depth)
        again = streams_after(walk, fine, depth)
        assert first
        assert all(torch.equal(first[place], states.tensor) for place, states in again.items())
