"""Every granularity: what a unit costs, that slicing equals masking, that the result loads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import secateur
from conftest import EVERY_FAMILY, EVERY_FAMILY_SLOWLY, left_padded, masked, tiny_model
from secateur.config import make_config
from secateur.errors import SecateurError
from secateur.export import pruned_form
from secateur.export.proof import ragged_plan
from secateur.methods import BEST, METHODS
from secateur.models import OpenModel, filled, open_model
from secateur.pipeline import read_plan
from secateur.pipeline.idle import idle_settings
from secateur.report import layer_rows
from secateur.search import SEARCHES
from secateur.structure import GRANULARITIES, Plan, Structure
from secateur.surgery import REPAIRS, pruned_view

BLOCKS = ("attention_block", "mlp_block")


def cut(opened: OpenModel, structure: Structure, plan: Plan) -> Any:
    weights = pruned_view(opened.weights, structure, plan)
    form = pruned_form(opened.family, opened.raw_config, opened.config, structure, plan, weights)
    return filled(form.empty(), form.weights)


def logits(model: Any) -> Tensor:
    inputs = left_padded()
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


def generated(model: Any, *, cache: bool) -> Tensor:
    return model.generate(
        **left_padded(), max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=cache,
        pad_token_id=0,
    )  # fmt: skip


def variants_with(granularity: str) -> list[str]:
    return [
        name
        for name in EVERY_FAMILY
        if open_model(tiny_model(name)).structures.select([granularity]).axes
    ]


@pytest.mark.parametrize("variant", EVERY_FAMILY)
@pytest.mark.parametrize("granularity", ["query_head", *BLOCKS])
def test_slicing_equals_masking(granularity: str, variant: str) -> None:
    dense = tiny_model(variant)
    opened = open_model(dense)
    structure = opened.structures.select([granularity])
    if not structure.axes:
        pytest.skip(f"{variant} has no units of this granularity")
    keep = ragged_plan(structure, 0).keep
    if granularity in BLOCKS:
        keep = {structure.axes[-1].name: ()}
    plan = Plan(keep, structure.architecture, structure.weights)
    plan.check(structure)
    small = cut(opened, structure, plan)
    assert sum(p.numel() for p in small.parameters()) == (
        structure.parameters - plan.removed_cost(structure)
    )
    got = logits(small)
    assert torch.equal(generated(small, cache=True), generated(small, cache=False))
    if granularity in BLOCKS:
        add_nothing(dense, structure, plan)
        expected = logits(dense)
    else:
        expected = logits(masked(dense, structure, plan))
    assert torch.allclose(got, expected, atol=1e-5)


# Llama-3.2-3B, Qwen2.5-3B, Qwen2-7B, Qwen2-0.5B: (heads, KV heads)
@pytest.mark.parametrize(("heads", "groups"), [(24, 8), (16, 2), (28, 4), (14, 2)])
@pytest.mark.parametrize("search", ["global", "uniform"])
def test_grouped_heads_of_any_number_are_cut_with_their_group(
    search: str, heads: int, groups: int, tiny_folder: Any, tmp_path: Path
) -> None:
    """The width of a head is not the model's over their number."""
    width = 48 if 48 % heads == 0 else 56
    sizes = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": width}
    folder, out = tiny_folder(head_dim=6, **sizes), tmp_path / "small"
    result = secateur.prune(
        folder, out=out, method="random", search=search, ratio=0.2, granularity="kv_group",
        evaluate="none",
    )  # fmt: skip
    dense, small = (secateur.load(place) for place in (folder, out))
    assert torch.allclose(
        logits(small), logits(masked(dense, result.structure, result.plan)), atol=1e-5
    )
    for layer in small.model.layers:
        of = [getattr(layer.self_attn, f"{name}_proj").weight.shape[0] // 6 for name in "qk"]
        assert of[0] * groups == of[1] * heads
    removed = [a for a in result.structure.axes if a.kind == "attention" and result.plan.removed(a)]
    assert removed


def add_nothing(model: Any, structure: Structure, plan: Plan) -> None:
    """The other route for a whole block: the linear that writes its result gives zero."""
    fine = open_model(model).structures
    for axis in structure.axes:
        for name in axis.of if plan.removed(axis) else ():
            consumer = fine.by_name[name].consumer
            module = model.get_submodule(consumer.module)
            for parameter in module.parameters():
                parameter.data.zero_()


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])
def test_whole_experts_go_with_their_row_of_the_router(variant: str) -> None:
    """The other route: the router never picks them."""
    dense = tiny_model(variant)
    opened = open_model(dense)
    structure = opened.structures.select(["expert"])
    axis = structure.axes[-1]
    plan = Plan({axis.name: (0, 2, 3)}, structure.architecture, structure.weights)
    small = cut(opened, structure, plan)
    router = next(m.module for m in axis.members if "expert" not in m.module)
    module = dense.get_submodule(router)
    never = torch.zeros(axis.units)
    never[1] = -torch.inf
    linear = torch.nn.functional.linear

    def routed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(x, weight, bias)
        return out + never if weight is module.weight else out

    torch.nn.functional.linear = routed
    try:
        expected = logits(dense)
    finally:
        torch.nn.functional.linear = linear
    assert torch.allclose(logits(small), expected, atol=1e-5)
    with pytest.raises(SecateurError, match="at least 2"):
        Plan({axis.name: (0,)}, structure.architecture, "").check(structure)


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_a_whole_layer_goes_and_a_stock_checkpoint_stays(variant: str) -> None:
    """The other route: the layer hands its input through."""
    dense = tiny_model(variant)
    opened = open_model(dense)
    structure = opened.structures.select(["layer"])
    plan = Plan({"layers.1.layer": ()}, structure.architecture, structure.weights)
    small = cut(opened, structure, plan)
    layer = dense.get_submodule(opened.family.layers)[1]

    def hand_through(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden, None) if opened.family.tuples else hidden

    got, layer.forward = logits(small), hand_through
    assert torch.allclose(got, logits(dense), atol=1e-5)
    assert type(small).__module__.startswith("transformers.")
    assert torch.equal(generated(small, cache=True), generated(small, cache=False))


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_the_hidden_width_shrinks_everywhere(variant: str, monkeypatch: Any) -> None:
    """The other route: the dense model with zeros, its norms over the channels that stay."""
    dense = tiny_model(variant)
    opened = open_model(dense)
    structure = opened.structures.select(["hidden"])
    (axis,) = structure.axes
    kept = tuple(range(0, axis.units, 2))
    plan = Plan({"hidden": kept}, structure.architecture, structure.weights)
    small = cut(opened, structure, plan)
    assert sum(p.numel() for p in small.parameters()) == (
        structure.parameters - plan.removed_cost(structure)
    )
    got = logits(small)
    for member in axis.members:
        tensor = dense.get_parameter(member.tensor).data
        tensor.index_fill_(member.dim, plan.removed_tensor(axis), 0)
    for name, module in dense.named_modules():
        inner = re.search("[qk]_norm", name)
        if "Norm" in type(module).__name__ and not any(module.children()) and not inner:
            shape = getattr(module, "weight", None)
            if shape is None or shape.shape[-1] == axis.units:
                narrow_norm(module, axis.units, torch.tensor(kept))
    assert torch.allclose(got, logits(dense), atol=2e-5)
    assert torch.equal(generated(small, cache=True), generated(small, cache=False))


def narrow_norm(norm: Any, width: int, kept: Tensor) -> None:
    """The norm of the kept channels, zeros elsewhere."""
    original, weight, bias = type(norm).forward, norm._parameters.get("weight"), None
    bias = norm._parameters.get("bias")

    def forward(x: Tensor) -> Tensor:
        if x.shape[-1] != width:
            return original(norm, x)
        saved = {"weight": weight, "bias": bias}
        shape = getattr(norm, "normalized_shape", None)
        for name, value in saved.items():
            if value is not None:
                norm._parameters[name] = torch.nn.Parameter(value.data[..., kept])
        if shape is not None:
            norm.normalized_shape = (len(kept),)
        out = torch.zeros_like(x)
        out[..., kept] = original(norm, x[..., kept])
        norm._parameters.update({k: v for k, v in saved.items() if v is not None})
        if shape is not None:
            norm.normalized_shape = shape
        return out

    norm.forward = forward


@pytest.mark.parametrize(
    ("granularity", "method"),
    [
        ("query_head,channel", "flap"),
        ("kv_group,mlp_block", "flap"),
        ("attention_block,mlp_block", "flap"),
        ("layer", "flap"),
        ("hidden", "magnitude"),
    ],
)
def test_prune_by_granularity(
    granularity: str, method: str, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    result = secateur.prune(
        tiny_folder(), out=tmp_path / "small", granularity=granularity, method=method, ratio=0.3,
        search="AL-AM" if method == "flap" else None, repair="none", calibration=str(text_file),
        samples=4, length=16, align=1,
    )  # fmt: skip
    small = secateur.load(tmp_path / "small")
    numbers = result.numbers["parameters"]
    assert sum(p.numel() for p in small.parameters()) == numbers["after"] < numbers["before"]
    assert torch.isfinite(logits(small)).all()
    again = secateur.apply(
        read_plan(tmp_path / "small"), tiny_folder(), out=tmp_path / "again",
    )  # fmt: skip
    assert again.numbers["parameters"] == numbers
    assert torch.equal(logits(secateur.load(tmp_path / "again")), logits(small))
    assert json.loads((tmp_path / "small" / "plan.json").read_text())


def test_costs_add_up() -> None:
    """Parameters of a whole are those of its parts, and of what only the whole takes along."""
    structures = open_model(tiny_model("llama-biased")).structures
    by = {name: structures.select([name]).axes for name in GRANULARITIES}
    groups, heads = by["kv_group"][0], by["query_head"][0]
    D, width, r = 48, 10, 2
    assert groups.cost == heads.cost * r + 2 * width * (D + 1)
    assert by["attention_block"][0].cost == groups.cost * groups.units + D
    assert by["mlp_block"][0].cost == by["channel"][0].cost * by["channel"][0].units + D
    blocks = by["attention_block"][0].cost + by["mlp_block"][0].cost
    assert by["layer"][0].cost == blocks + 2 * D
    assert by["hidden"][0].units == D
    assert sum(p.numel() for p in tiny_model("llama-biased").parameters()) == (
        by["hidden"][0].cost * D + 3 * (groups.units * width * (r + 2) + 2 * 56)
    )


def test_blocks_have_no_uniform_share(tiny_folder: Any, text_file: Path) -> None:
    with pytest.raises(SecateurError, match="AL-AM"):
        secateur.prune(tiny_folder(), granularity="layer", method="wanda-sp", search="uniform",
                       dry_run=True, calibration=str(text_file), samples=4, length=16)  # fmt: skip
    with pytest.raises(SecateurError, match="magnitude-l2"):
        secateur.prune(tiny_folder(), granularity="hidden", dry_run=True, repair="none",
                       method="flap", calibration=str(text_file), samples=4, length=16)  # fmt: skip
    with pytest.raises(SecateurError, match="no units of granularity 'expert'"):
        secateur.prune(tiny_folder(), granularity="expert", dry_run=True)
    with pytest.raises(SecateurError, match="kv_group"):
        secateur.prune(tiny_folder(), granularity="kv_groups", dry_run=True)


@pytest.mark.parametrize("granularity", ["layer", "attention_block,mlp_block", "hidden"])
@pytest.mark.parametrize("repair", ["bias", "refit", "mask-tuning"])
def test_repairs_of_single_linears_are_refused_for_coarse_units_before_any_work(
    granularity: str, repair: str, tiny_folder: Any
) -> None:
    if repair == "refit" and granularity != "hidden":
        return  # mended by the linears before the gap
    for dry_run in (True, False):
        with pytest.raises(SecateurError, match="--repair none"):
            secateur.prune(
                tiny_folder(), granularity=granularity, repair=repair, dry_run=dry_run,
                calibration="there is none",
            )  # fmt: skip


@pytest.mark.parametrize(
    "granularity", ["hidden", "hidden,channel", "layer", "attention_block,channel", "kv_group"]
)
def test_the_numbers_are_those_of_the_tensors(
    granularity: str, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    """Linears before and after, counted in the files."""
    folder, out = tiny_folder(), tmp_path / "small"
    result = secateur.prune(
        folder, granularity=granularity, method="magnitude", search="AL-AM", ratio=0.3, out=out,
        calibration=str(text_file), samples=4, length=16, evaluate="none",
    )  # fmt: skip
    numbers = result.numbers["prunable_parameters"]
    for when, place in (("before", folder), ("after", out)):
        stored = load_file(place / "model.safetensors")
        linears = sum(tensor.numel() for name, tensor in stored.items() if "_proj" in name)
        assert numbers[when] == linears
        assert result.numbers["parameters"][when] == sum(t.numel() for t in stored.values())
    dry = secateur.prune(
        folder, granularity=granularity, method="magnitude", search="AL-AM", ratio=0.3,
        calibration=str(text_file), samples=4, length=16, dry_run=True,
    )  # fmt: skip
    assert dry.numbers["prunable_parameters"] == numbers


def test_the_table_says_which_layers_went_and_which_are_whole() -> None:
    structure = open_model(tiny_model()).structures
    layers = structure.select(["layer"])
    plan = Plan({"layers.1.layer": ()}, structure.architecture, structure.weights)
    rows = layer_rows(layers, plan)
    assert rows == [(0, "all", "all"), (1, "gone", "gone"), (2, "kept", "kept")]
    hidden = structure.select(["hidden"])
    plan = Plan({"hidden": tuple(range(40))}, structure.architecture, structure.weights)
    assert layer_rows(hidden, plan)[-1] == ("hidden width", "40 of 48", "40 of 48")


@pytest.mark.parametrize("again", ["channel", "mlp_block", "layer", "hidden", "attention_block"])
@pytest.mark.parametrize("variant", ["llama-gqa", "bloom", "falcon"])
def test_a_pruned_folder_can_be_pruned_again_by_other_units(
    variant: str, again: str, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    """Config and weights fit, and it computes what masking the first one does."""
    one, two = tmp_path / "one", tmp_path / "two"
    options: dict[str, Any] = {
        "method": "magnitude", "search": "AL-AM", "repair": "none", "align": 1, "samples": 4,
        "length": 16, "evaluate": "none", "calibration": str(text_file),
    }  # fmt: skip
    secateur.prune(tiny_folder(variant), granularity="kv_group,channel", ratio=0.4, out=one,
                   **options)  # fmt: skip
    opened = open_model(one)
    units = opened.structures.select([again])
    if not units.axes:
        pytest.skip(f"{variant} has no units of this granularity")
    result = secateur.prune(one, granularity=again, ratio=0.1, out=two, **options)
    model = secateur.load(two)
    assert open_model(two).structure.axes
    ids = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits
    assert torch.isfinite(logits).all()
    if again == "channel":
        with torch.no_grad():
            expected = masked(secateur.load(one), units, result.plan)(ids).logits
        assert torch.allclose(logits, expected, atol=1e-4)


def test_blocks_and_kv_groups_go_together_where_heads_have_slopes(
    tiny_folder: Any, text_file: Path
) -> None:
    result = secateur.prune(
        tiny_folder("bloom"), granularity="kv_group,attention_block", ratio=0.2,
        method="magnitude", search="AL-AM", repair="none", calibration=str(text_file),
        samples=4, length=16, evaluate="none",
    )  # fmt: skip
    with torch.no_grad():
        assert torch.isfinite(result.load()(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize("method", sorted(set(METHODS) - {BEST}))
@pytest.mark.parametrize("granularity", ["layer", "mlp_block", "attention_block, mlp_block"])
def test_every_method_has_a_search_and_a_repair_for_whole_units(
    method: str, granularity: str
) -> None:
    config = make_config(model="m", method=method, granularity=granularity)
    assert SEARCHES[config.search_name].across
    assert config.repair_name == "none" or REPAIRS[config.repair_name].fits
    told = idle_settings(config)
    own = METHODS[method]
    for kind, named in (("search", own.search), ("repair", own.repair)):
        taken = getattr(config, f"{kind}_name")
        assert any(f"--{kind})" in text for text in told) == (taken != named)
        assert (
            getattr(make_config(model="m", method=method, granularity="channel"), f"{kind}_name")
            == named
        )
    asked = make_config(
        model="m", method=method, granularity=granularity, search="uniform", repair="bias"
    )
    assert (asked.search_name, asked.repair_name) == ("uniform", "bias")
