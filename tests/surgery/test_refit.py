"""Laws of the least-squares repairs, and the streamed walk against whole-model forwards."""

import copy
import math
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import VARIANTS, flap_biases, tiny_model
from secateur.errors import SecateurError
from secateur.export import pruned_form
from secateur.models import OpenModel, filled, open_model
from secateur.solve import factor
from secateur.stats import Activations, Walk
from secateur.structure import Plan, Structure
from secateur.surgery import (
    TARGETS,
    Fit,
    Normal,
    Repaired,
    Sums,
    bias,
    mask_tuning,
    pruned_view,
    refit,
    refit_on_held_out,
    sequential_repair,
)
from secateur.surgery.observe import Consumer, residual_multiplier
from secateur.surgery.refit import least_squares_without_bias
from secateur.surgery.replay import anatomy
from secateur.surgery.streams import Streams

FAMILIES = ["llama-gqa", "llama-biased", "qwen2-gqa", "mistral-gqa", "qwen3-gqa"]
DAMPINGS = [0.0, 1e-3, 1e-2, 1.0]


def problem(seed: int = 0, tokens: int = 300) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense inputs [token, 12] that depend on each other, W [5, 12], b [5], and kept channels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(tokens, 12) @ draw(12, 12) + 0.5 * draw(12)
    return inputs, draw(5, 12), draw(5), torch.tensor([0, 1, 4, 5, 6, 9, 10])


def normal_of(inputs: Tensor, residual: Tensor) -> Normal:
    sums = Sums(inputs.shape[1], residual.shape[1], dtype=torch.float64)
    sums.update(inputs, residual)
    return sums.normal()


def cut(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Kept inputs, kept weights, and what these leave of the dense output."""
    inputs, weight, _, kept = problem(seed)
    return inputs[:, kept], weight[:, kept], inputs @ weight.T - inputs[:, kept] @ weight[:, kept].T


def left(inputs: Tensor, residual: Tensor, fit: Fit) -> Tensor:
    return residual - inputs @ fit.change.T - fit.added


@pytest.mark.parametrize("damping", DAMPINGS)
def test_where_nothing_is_left_nothing_changes_to_the_bit(damping: float) -> None:
    inputs, weight, _ = cut()
    normal = normal_of(inputs, torch.zeros(len(inputs), len(weight)))
    fit = refit(normal, damping)
    assert not fit.change.any()
    assert not fit.added.any()
    assert not mask_tuning(normal, weight, torch.arange(7)).change.any()


@pytest.mark.parametrize("damping", DAMPINGS[:-1])
def test_the_refit_is_the_minimum_that_its_equation_names(damping: float) -> None:
    """Two routes: the normal equations, and lstsq on the rows with the ridge as rows below."""
    inputs, _, residual = cut()
    power = damping * inputs.square().sum(dim=0)
    columns = [inputs, torch.ones(len(inputs), 1)]
    ridge = torch.eye(7, sum(c.shape[1] for c in columns)) * power.sqrt()[:, None]
    rows = torch.cat([torch.cat(columns, dim=1), ridge.double()])
    goal = torch.cat([residual, torch.zeros(7, 5)])
    expected = torch.linalg.lstsq(rows, goal).solution
    fit = refit(normal_of(inputs, residual), damping)
    assert torch.allclose(fit.change.T, expected[:7], atol=1e-8)
    assert torch.allclose(fit.added, expected[7], atol=1e-8)


@pytest.mark.parametrize("damping", DAMPINGS[:-1])
def test_the_refit_without_a_bias_has_no_constant_column(damping: float) -> None:
    inputs, _, residual = cut()
    ridge = torch.diag((damping * inputs.square().sum(dim=0)).sqrt())
    goal = torch.cat([residual, torch.zeros(7, 5)])
    expected = torch.linalg.lstsq(torch.cat([inputs, ridge]), goal).solution
    normal = normal_of(inputs, residual)
    fit = least_squares_without_bias(normal, None, damping, "here")
    assert torch.allclose(fit.change.T, expected, atol=1e-8)
    assert not fit.added.any()
    error = normal.error(fit.change)
    assert error == pytest.approx((residual - inputs @ expected).square().sum().item(), rel=1e-6)
    assert refit(normal, damping).change.sub(fit.change).abs().max() > 1e-3


def test_a_strong_ridge_moves_nothing_but_the_bias_and_that_is_flaps() -> None:
    inputs, weight, _, kept = problem()
    gone = torch.tensor([c for c in range(12) if c not in kept])
    normal = normal_of(inputs[:, kept], inputs[:, gone] @ weight[:, gone].T)
    flap = bias(weight[:, gone].T[:, None], inputs[:, gone].mean(0)[:, None])
    sizes = [refit(normal, damping).change.norm() for damping in (1e-2, 1e2, 1e6, 1e10)]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert sizes[3] < 1e-8
    for damping in (1e10, math.inf):
        fit = refit(normal, damping)
        assert torch.allclose(fit.added, flap, atol=1e-6)
    assert not refit(normal, math.inf).change.any()


@pytest.mark.parametrize("damping", [*DAMPINGS, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_the_error_on_calibration_tokens_never_increases(seed: int, damping: float) -> None:
    inputs, weight, residual = cut(seed)
    residual = residual + torch.randn(residual.shape, generator=torch.Generator().manual_seed(seed))
    normal = normal_of(inputs, residual)
    fit = refit(normal, damping)
    error = left(inputs, residual, fit).square().sum().item()
    assert error <= residual.square().sum().item()
    assert normal.error(fit.change, fit.added) == pytest.approx(error, rel=1e-9)
    tuned = mask_tuning(normal, weight, torch.arange(7) // 2)
    assert normal.error(tuned.change) <= normal.error() + 1e-9


def test_a_removed_unit_that_doubles_a_kept_one_is_recovered() -> None:
    inputs, weight, _, kept = problem()
    inputs[:, [2, 3, 7, 8, 11]] = inputs[:, [0, 1, 4, 5, 6]]
    small, own = inputs[:, kept], weight[:, kept]
    residual = inputs @ weight.T - small @ own.T
    fit = refit(normal_of(small, residual), 0.0)
    assert left(small, residual, fit).abs().max() < 1e-10
    assert not fit.warnings


def test_scaling_units_is_never_better_than_refitting_them() -> None:
    for seed in range(5):
        inputs, weight, residual = cut(seed)
        normal = normal_of(inputs, residual)
        tuned = mask_tuning(normal, weight, torch.tensor([0, 0, 1, 1, 2, 3, 3]))
        best = refit(normal, 0.0)
        assert normal.error(tuned.change) >= normal.error(best.change, best.added)


def test_mask_tuning_equals_least_squares_over_the_units_outputs() -> None:
    inputs, weight, residual = cut()
    owner = torch.tensor([0, 0, -1, 1, 1, 2, 2])
    outputs = torch.stack(
        [(inputs[:, owner == u] @ weight[:, owner == u].T).flatten() for u in range(3)], dim=1
    )
    rows = torch.cat([outputs, torch.eye(3, dtype=torch.float64)])
    goal = torch.cat([residual.flatten(), torch.zeros(3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, goal[:, None]).solution.flatten()
    fit = mask_tuning(normal_of(inputs, residual), weight, owner)
    for unit in range(3):
        own = weight[:, owner == unit]
        assert torch.allclose(fit.change[:, owner == unit], own * expected[unit])
    assert not fit.change[:, 2].any()
    assert not fit.stop


def test_a_singular_system_is_damped_with_a_warning_that_names_the_layer() -> None:
    inputs, _, residual = cut()
    inputs[:, 3] = inputs[:, 2]
    fit = refit(normal_of(inputs, residual), 0.0, where="layers.3.mlp.down_proj")
    assert "layers.3.mlp.down_proj: singular" in fit.warnings[0]
    assert fit.damping > 0
    assert torch.isfinite(fit.change).all()
    assert left(inputs, residual, fit).square().sum() < residual.square().sum()
    nothing = refit(normal_of(torch.zeros(9, 4), torch.ones(9, 2)), 0.01, where="here")
    assert not nothing.change.any()
    assert nothing.added.tolist() == pytest.approx([1, 1])
    assert not refit(normal_of(inputs, residual), 0.01).warnings


def test_the_condition_is_that_of_the_matrix() -> None:
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.logspace(0, 5, 20, dtype=torch.float64)) @ basis.T
    assert factor(matrix, 0.0, where="").condition == pytest.approx(1e5, rel=0.05)
    assert factor(matrix, 1e7, where="").condition < 1.1


def test_the_damping_is_the_one_that_held_out_tokens_like_best() -> None:
    inputs, _, residual = cut()
    noise = torch.randn(residual.shape, generator=torch.Generator().manual_seed(0))
    few, rest = normal_of(inputs[:40], (residual + 3 * noise)[:40]), normal_of(inputs, residual)
    grid = (1e-6, 1e-2, 1.0, 100.0)
    errors = {d: rest.error(f.change, f.added) for d in grid for f in [refit(few, d)]}
    assert refit_on_held_out(few, rest, grid).damping == min(errors, key=errors.__getitem__)
    nothing = normal_of(inputs, torch.zeros(len(inputs), 5))
    assert not refit_on_held_out(nothing, nothing, grid).change.any()


@pytest.mark.parametrize("seed", range(6))
def test_few_tokens_for_many_inputs_never_make_the_held_out_error_rise(seed: int) -> None:
    """Three hundred tokens for two hundred inputs, and little of the residual is theirs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, 200, generator=generator, dtype=torch.float64)
    residual = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    residual += 0.02 * inputs[:, :4]
    fitted, held = normal_of(inputs[:300], residual[:300]), normal_of(inputs[300:], residual[300:])
    assert held.error(*astuple(refit(fitted, 0.001))[:2]) > held.error()
    found = refit_on_held_out(fitted, held)
    assert held.error(found.change, found.added) <= held.error()


def test_a_bias_that_helps_is_kept_where_no_weight_does() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 50, generator=generator, dtype=torch.float64)
    residual = 3 + torch.randn(60, 4, generator=generator, dtype=torch.float64)
    found = refit_on_held_out(
        normal_of(inputs[:52], residual[:52]), normal_of(inputs[52:], residual[52:])
    )
    assert math.isinf(found.damping)
    assert not found.change.any()
    assert torch.allclose(found.added, residual[:52].mean(dim=0))


def test_a_massive_channel_does_not_damp_away_the_rest() -> None:
    """In one token of 32 it is a thousand times the others, as in the first of a window."""
    inputs, _, residual = cut()
    spiked = torch.cat([inputs, torch.zeros(len(inputs), 1)], dim=1)
    spiked[::32, -1] = 1000
    plain = left(inputs, residual, refit(normal_of(inputs, residual), 0.01))
    beside = left(spiked, residual, refit(normal_of(spiked, residual), 0.01))
    assert beside.square().sum() < 1.01 * plain.square().sum()


def test_the_units_of_a_channel_do_not_matter() -> None:
    inputs, _, residual = cut()
    units = torch.logspace(-4, 4, inputs.shape[1], dtype=torch.float64)
    change = refit(normal_of(inputs, residual), 0.1).change
    other = refit(normal_of(inputs * units, residual), 0.1).change
    assert torch.allclose(other * units, change, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: refit(normal_of(torch.ones(3, 2), torch.ones(3, 1)), -1.0), "damping = -1.0"),
        (
            lambda: refit(Sums(2, 1, dtype=torch.float64).normal(), where="here"),
            "No token reached here",
        ),
        (
            lambda: refit(normal_of(torch.full((3, 2), torch.nan), torch.ones(3, 1)), where="here"),
            "inputs or targets of here are NaN",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message) as error:
        make()
    assert len(str(error.value).splitlines()) <= 2


# The streamed walk.


def plan_of(structure: Structure, layers: tuple[int, ...] = (0, 1, 2)) -> Plan:
    """Two of three attention units and 40 of 56 channels stay, others in every layer."""
    keep = {
        axis.name: tuple(
            sorted((3 * axis.layer + 5 * unit) % axis.units for unit in range(axis.units * 5 // 7))
        )
        for axis in structure.axes
        if axis.layer in layers
    }
    return Plan(keep, structure.architecture, structure.weights)


def repaired(opened: OpenModel, plan: Plan, tokens: Tensor, **options: Any) -> Repaired:
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    return sequential_repair(walk, opened.structure, plan, **options)


def logits(opened: OpenModel, plan: Plan, tokens: Tensor, **tensors: Any) -> Tensor:
    """Logits of the model cut by `plan`, with `added` or `replaced` tensors."""
    weights = pruned_view(opened.weights, opened.structure, plan, **tensors)
    form = pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structure, plan, weights
    )
    with torch.no_grad():
        return filled(form.empty(), form.weights)(tokens).logits


@pytest.mark.parametrize("repair", ["refit", "mask-tuning"])
@pytest.mark.parametrize("variant", FAMILIES)
def test_with_nothing_pruned_nothing_changes(variant: str, repair: str, tokens: Tensor) -> None:
    opened = open_model(tiny_model(variant))
    empty = Plan({}, opened.structure.architecture, opened.structure.weights)
    assert repaired(opened, empty, tokens, repair=repair) == Repaired({}, ())


@pytest.mark.parametrize("target", ["own_output", "one_shot"])
def test_a_whole_consumer_has_nothing_to_repair_on_its_own_inputs(
    target: str, tokens: Tensor
) -> None:
    """Layer 0 is cut; fitted to what they gave themselves, those after it stay as they were."""
    opened = open_model(tiny_model("llama-biased"))
    plan = plan_of(opened.structure, layers=(0,))
    found = repaired(opened, plan, tokens, target=target)
    for name, tensor in found.tensors.items():
        if ".layers.0." not in name:
            assert torch.equal(tensor, opened.weights.tensor(name)), name
    assert len(found.reports) == 6


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_refit_is_closer_to_the_dense_logits_than_the_bias_and_nothing(
    variant: str, tokens: Tensor
) -> None:
    dense = tiny_model(variant)
    opened = open_model(dense)
    plan = plan_of(opened.structure)
    with torch.no_grad():
        expected = dense(tokens).logits
    found = repaired(opened, plan, tokens, damping=0.01)
    errors = [
        (logits(opened, plan, tokens, **tensors) - expected).square().mean()
        for tensors in (
            {"replaced": found.tensors},
            {"added": flap_biases(opened, plan, tokens)},
            {},
        )
    ]
    assert errors[0] < 0.8 * errors[1]
    assert errors[0] < 0.8 * errors[2]
    assert all(report.after <= report.before for report in found.reports)
    assert all(report.target == "residual" for report in found.reports)


def reference(dense: Any, opened: OpenModel, plan: Plan, tokens: Tensor, damping: float) -> Any:
    """The other route: whole models, a forward for every consumer, lstsq on all tokens at once."""
    student = copy.deepcopy(dense)
    for axis in opened.structure.axes:
        name, removed = (
            axis.consumer.module,
            axis.consumer.blocks.indices(plan.removed_tensor(axis)),
        )
        linear = student.get_submodule(name)
        linear.weight.data[:, removed.flatten()] = 0
        layer, attention = f"model.layers.{axis.layer}", axis.kind == "attention"
        behind = "gemma" in dense.config.model_type
        inner = "pre_feedforward_layernorm" if behind else "post_attention_layernorm"
        stream = f"{layer}.{'input_layernorm' if attention else inner}"
        gap = captured(dense, tokens, stream) - captured(student, tokens, stream)
        output = captured(dense, tokens, name, output=True)
        weights = 1 / (
            captured(student, tokens, f"{layer}.input_layernorm").square().mean(1) + 1e-6
        )
        # granite adds a share of every output to the stream
        change = gap / getattr(dense.config, "residual_multiplier", 1.0)
        if behind:
            post = "post_attention_layernorm" if attention else "post_feedforward_layernorm"
            gain = 1 + dense.get_submodule(f"{layer}.{post}").weight.detach()
            size = (output.square().mean(1, keepdim=True) + 1e-6).sqrt()
            change = gap * size * gain / (gain**2 + 0.1 * (gain**2).mean())
            weights = weights / size[:, 0] ** 2
        residual = (output + change - captured(student, tokens, name, output=True)).double()
        kept = axis.consumer.blocks.indices(plan.kept_tensor(axis)).flatten()
        inputs = captured(student, tokens, name)[:, kept].double()
        root = weights.double().sqrt()[:, None]
        inputs, residual, ones = inputs * root, residual * root, root
        power = damping * inputs.square().sum(dim=0)
        ridge = torch.cat([power.sqrt().diag(), torch.zeros(len(kept), 1)], dim=1)
        rows = torch.cat([torch.cat([inputs, ones], dim=1), ridge.double()])
        goal = torch.cat([residual, torch.zeros(len(kept), residual.shape[1])])
        solution = torch.linalg.lstsq(rows, goal).solution.float()
        linear.weight.data[:, kept] += solution[:-1].T
        old = 0 if linear.bias is None else linear.bias.data
        linear.bias = nn.Parameter(old + solution[-1])
    return student


def captured(model: Any, tokens: Tensor, module: str, *, output: bool = False) -> Tensor:
    """Input (or output) [token, channel] of a module in a forward of the whole model."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(
        lambda _, args, result: seen.append((result if output else args[0]).flatten(0, -2))
    )
    with torch.no_grad():
        model(tokens, use_cache=False)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "variant",
    ["llama-gqa", "qwen2-gqa", "mistral-gqa", "qwen3-biased", "granite", "gemma2", "gemma3"],
)
def test_the_streamed_refit_equals_whole_model_forwards(variant: str, tokens: Tensor) -> None:
    dense = tiny_model(variant)
    opened = open_model(dense)
    plan = plan_of(opened.structure)
    found = repaired(opened, plan, tokens, damping=0.01)
    student = reference(dense, opened, plan, tokens, 0.01)
    for axis in opened.structure.axes:
        kept = axis.consumer.blocks.indices(plan.kept_tensor(axis)).flatten()
        linear = student.get_submodule(axis.consumer.module)
        weight = found.tensors[axis.consumer.tensor]
        assert torch.allclose(weight, linear.weight[:, kept], atol=1e-3)
        added = found.tensors[f"{axis.consumer.module}.bias"]
        assert torch.allclose(added, linear.bias, atol=1e-3)
    with torch.no_grad():
        expected = student(tokens).logits
    got = logits(opened, plan, tokens, replaced=found.tensors)
    assert torch.allclose(got, expected, atol=1e-2)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("repair", ["refit", "mask-tuning"])
def test_every_fit_and_target_repairs_on_its_own_terms(
    repair: str, target: str, tokens: Tensor
) -> None:
    opened = open_model(tiny_model())
    plan = plan_of(opened.structure)
    found = repaired(opened, plan, tokens, repair=repair, target=target, damping=0.01)
    assert len(found.reports) == 6
    for report in found.reports:
        assert report.after <= report.before + 1e-6
        assert report.condition >= 1
        assert not report.warnings
    pruned = pruned_view(opened.weights, opened.structure, plan, replaced=found.tensors)
    for name, tensor in found.tensors.items():
        assert pruned.specs[name].shape == tensor.shape
        assert torch.equal(pruned.tensor(name), tensor)
    assert any(name.endswith(".bias") for name in found.tensors) == (repair == "refit")


def test_one_shot_without_weights_moving_is_flaps_bias(tokens: Tensor) -> None:
    opened = open_model(tiny_model("qwen2-gqa"))
    plan = plan_of(opened.structure)
    found = repaired(opened, plan, tokens, target="one_shot", damping=math.inf)
    for name, value in flap_biases(opened, plan, tokens).items():
        assert torch.allclose(found.tensors[name], value.float(), atol=1e-5)


def test_held_out_windows_only_choose_the_damping(tokens: Tensor) -> None:
    """Other tokens in the last window can change which damping is best, and nothing else."""
    opened = open_model(tiny_model())
    plan = plan_of(opened.structure, layers=(2,))
    found = repaired(opened, plan, tokens)
    damping = {report.module: report.damping for report in found.reports}
    assert set(damping.values()) <= {0.001, 0.01, 0.1, 1.0, math.inf}
    first = found.reports[0].module
    alone = repaired(opened, plan, tokens[:-1], damping=damping[first])
    for name in (f"{first}.weight", f"{first}.bias"):
        assert torch.allclose(found.tensors[name], alone.tensors[name], atol=1e-4)
    single = repaired(opened, plan, tokens[:1])
    assert {report.damping for report in single.reports} == {0.01}


def test_mask_tuning_stops_at_the_first_scale_out_of_bounds(tokens: Tensor) -> None:
    """The MLP of layer 1 gives next to nothing, and is asked for a thousand times more."""
    dense = tiny_model()
    dense.model.layers[1].mlp.down_proj.weight.data[:, 40:] *= 1000
    opened = open_model(dense)
    keep = dict(plan_of(opened.structure).keep) | {"layers.1.mlp": tuple(range(40))}
    plan = Plan(keep, opened.structure.architecture, opened.structure.weights)
    found = repaired(opened, plan, tokens, repair="mask-tuning")
    assert set(found.tensors) == {
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
    }
    assert "a scale left [-10, 10]" in found.reports[-1].warnings[-1]
    assert len(found.reports) == 4


@pytest.mark.parametrize("batch", [1, 6])
def test_the_batch_does_not_matter_and_the_model_stays_as_it_was(
    batch: int, tokens: Tensor
) -> None:
    dense = tiny_model("llama-biased")
    before = {name: p.clone() for name, p in dense.named_parameters()}
    opened = open_model(dense)
    plan = plan_of(opened.structure)
    found = repaired(opened, plan, tokens, damping=0.1)
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=batch)
    other = sequential_repair(walk, opened.structure, plan, damping=0.1)
    for name, tensor in found.tensors.items():
        assert torch.allclose(other.tensors[name], tensor, atol=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in dense.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_multiplier_of_the_residual_is_measured(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    before, first, second = torch.randn(3, 4, 30, 48, generator=generator).to(dtype)
    before = 5 * before
    assert residual_multiplier(before, before + first + second, [first, second]) == 1.0
    scaled = residual_multiplier(before, before + 0.22 * (first + second), [first, second])
    assert scaled == pytest.approx(0.22, rel=0.02)
    normed = torch.nn.functional.rms_norm(first, (48,)) + second
    for after in (before + normed, before + first, before + 0.5 * first + second, before):
        assert residual_multiplier(before, after, [first, second]) is None


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "olmo2"])
def test_what_is_normed_before_it_is_added_repays_the_gap_through_its_norm(
    variant: str, tokens: Tensor
) -> None:
    """Nearer to the dense model than consumers that are fitted to what they gave there."""
    model = tiny_model(variant)
    opened = open_model(model)
    plan = plan_of(opened.structure)
    with torch.no_grad():
        dense = model(tokens).logits
    apart = {}
    for target in ("residual", "dense_output"):
        found = repaired(opened, plan, tokens, damping=0.01, target=target)
        assert {report.target for report in found.reports} == {target}
        assert all(report.after <= report.before for report in found.reports)
        small = logits(opened, plan, tokens, replaced=found.tensors)
        apart[target] = float((small - dense).norm())
    assert apart["residual"] < apart["dense_output"]


NORMED = ("gemma2", "gemma3", "olmo2")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.startswith(NORMED)])
def test_a_layer_whose_consumers_give_their_targets_gives_the_dense_stream(
    variant: str, tokens: Tensor
) -> None:
    """Whatever the student inherited, parallel blocks and mixtures of experts included."""
    opened = open_model(tiny_model(variant))
    plan = Plan({}, "", "")
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=len(tokens))
    dense = walk.embed()
    for step in walk.layers():
        noise = torch.randn(dense.tensor.shape, generator=torch.Generator().manual_seed(step.index))
        student = Activations.of(dense.tensor + 0.1 * noise.to(dense.tensor.dtype))
        axes = [a for a in opened.structure.axes if a.layer == step.index]
        linears = [a for a in axes if a.consumer.parameter == "weight"]
        consumers = {a.consumer.module: Consumer.of(a, plan, step.module) for a in linears}
        _, hidden, call = next(step.batches(dense))
        seen = anatomy(step.module, hidden, call, list(consumers.values()))
        called = [consumers[name] for name in seen.multipliers]
        streams = Streams(step, called, dense, student, "residual", seen, {})
        streams.run_dense()
        goals: dict[Consumer, Tensor] = {}
        streams._given = lambda *_, given=goals: dict(given)
        for consumer in called:
            if seen.multipliers[consumer.name] is None:  # a shared expert, gated before it is added
                assert "expert" in consumer.name
                continue
            (part,) = streams.left_by(consumer)
            goals[consumer] = part.gives + part.left
        streams.run_student()
        assert torch.allclose(student.tensor, dense.tensor, atol=1e-4), step.index


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_held_out_error_never_rises(variant: str, tokens: Tensor) -> None:
    opened = open_model(tiny_model(variant))
    found = repaired(opened, plan_of(opened.structure), tokens)
    assert found.reports or not [
        a for a in opened.structure.axes if a.consumer.parameter == "weight"
    ]
    assert all(report.after <= report.before for report in found.reports)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repair": "refitt"}, "Unknown repair 'refitt'. Did you mean 'refit'"),
        ({"target": "dense"}, "Unknown target 'dense'"),
        ({"damping": -1.0}, "damping = -1.0 will not do"),
    ],
)
def test_a_slip_is_told(options: dict[str, Any], message: str, tokens: Tensor) -> None:
    opened = open_model(tiny_model())
    with pytest.raises(SecateurError, match=message):
        repaired(opened, plan_of(opened.structure), tokens, **options)


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_student_has_its_experts_cut_and_later_layers_repay_that(
    variant: str, tokens: Tensor
) -> None:
    opened = open_model(tiny_model(variant))
    first = min(a.layer for a in opened.structure.axes if a.granularity == "expert_channel")
    axis = next(
        a for a in opened.structure.axes if a.granularity == "expert_channel" and a.layer == first
    )
    each = axis.units // axis.groups
    keep = tuple(g * each + u for g in range(axis.groups) for u in range(each // 2))
    plan = Plan({axis.name: keep}, opened.structure.architecture, opened.structure.weights)
    found = repaired(opened, plan, tokens, damping=0.01, target="dense_output")
    before = {report.module: report.before for report in found.reports}
    layers = {int(module.split(".layers.")[1].split(".")[0]): b for module, b in before.items()}
    assert layers[first] == 0
    # what it was fitted on is what the cut model's attention sees
    weights = pruned_view(opened.weights, opened.structure, plan)
    form = pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structure, plan, weights
    )
    name = opened.structure.by_name[f"layers.{first + 1}.attention"].consumer.module
    wanted = captured(tiny_model(variant), tokens, name, output=True)
    missed = captured(filled(form.empty(), form.weights), tokens, name, output=True) - wanted
    share = float(missed.square().sum() / wanted.square().sum())
    assert share > 0
    assert layers[first + 1] == pytest.approx(share, rel=1e-3)
