"""A family that nobody declared: where its layers are, and what counts its units, found too."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint import ModuleWeights
from ...errors import SecateurError
from ...structure import Coupling
from ...structure.size import E, I, K, Size, d, r
from ..families import Family
from ..streamed import StreamedModel, empty_model
from .shallow import layer_kinds, layers_path, shallow_config
from .sizes import TOLERANCES, Sizes, check_counts
from .tiny import dense_config, running_model, tiny_model, tokens
from .trace import Traced, traced

_COUNTS: tuple[Size, ...] = (K * r, K, r, I, E)
# The width of all heads, where it may as well be that of the stream: the proof finds out.
_WIDTHS: tuple[Size, ...] = (K * r * d, K * d)
# How many experts a token goes to is no count of units, though in a small model it is all.
_NO_COUNTS = ("layer_idx", "top_k")
_HEAD_COUNTS: dict[str, Size] = {"num_attention_heads": K * r, "num_key_value_heads": K}


def undeclared_family(config: Any, model: Any) -> Family:
    """The layout of `model` (on meta or not), traced from its code alone.

    What makes no layout is left whole; `Family.left` says what and why.

    Raises:
        SecateurError: no layers are found, or nothing in them makes a layout.
    """
    dense = dense_config(config)
    if dense is not config:
        model = empty_model(dense, torch.float32)
    check_counts(dense)
    path = _layers_path(dense, model)
    config = shallow_config(dense, model, path)
    small = running_model(config, 0)
    _check_causal(small)
    place = Family(
        config=type(config).__name__,
        model=type(model).__name__,
        layers=path,
        couplings=(),
        tuples=_gives_tuples(small, path),
    )
    _check_layers_alone(small, place)
    kinds = layer_kinds(model, path).values()
    found = [traced(config, layer, place) for layer in kinds]
    left = {module: reason for some in found for module, reason in some.left.items()}
    if not any(some.couplings for some in found):
        raise _nothing(config, left)
    follow = {
        item
        for some, layer in zip(found, kinds, strict=True)
        for item in _followers(config, some.sizes, path, layer)
    }
    widths = {
        item
        for some, layer in zip(found, kinds, strict=True)
        if any(c.kind == "attention" for c in some.couplings)
        for item in _followers(config, some.sizes, path, layer, _WIDTHS)
    } - follow
    return replace(
        place,
        couplings=_joined(coupling for some in found for coupling in some.couplings),
        follow=tuple(sorted(follow, key=str)),
        widths=tuple(sorted(widths, key=str)),
        kv_heads=_kv_heads(config, found),
        left=tuple(sorted(left.items())),
    )


def _nothing(config: Any, left: Mapping[str, str]) -> SecateurError:
    reasons = "; ".join(f"{module}: {reason}" for module, reason in sorted(left.items()))
    return SecateurError(
        f"Nothing in the layers of {config.model_type!r} can be taken out by units"
        f" ({reasons or 'nothing that a weight writes is read by another of the same block only'})."
        "\nExpected attention heads, MLP channels or experts."
    )


def _joined(couplings: Iterable[Coupling]) -> tuple[Coupling, ...]:
    """Those of all kinds of layers. One coupling may own a tensor more in another kind of layer."""
    joined: dict[tuple[str, str], Coupling] = {}
    for coupling in couplings:
        reader = next(piece for piece in coupling.slices if piece.role == "consumer")
        key = (coupling.name, f"{reader.module}.{reader.parameter}")
        known = joined.setdefault(key, coupling)
        own = {(piece.module, piece.parameter) for piece in known.slices}
        more = [p for p in coupling.slices if (p.module, p.parameter) not in own]
        joined[key] = replace(known, slices=(*known.slices, *more))
    return tuple(joined.values())


def _layers_path(config: Any, model: Any) -> str:
    path = layers_path(config, model)
    if path is None:
        raise SecateurError(
            f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder layers, as"
            " its config says it has.\nExpected a causal language model of transformers."
        )
    return path


def _check_causal(model: Any) -> None:
    """In a decoder the last token changes no logits before it."""
    ids = tokens(0)
    other = torch.cat([ids[:, :-1], ids[:, -1:] % 63 + 1], dim=1)
    with torch.no_grad():
        one, two = (model(input_ids=some, use_cache=False).logits[:, :-1] for some in (ids, other))
    tolerance = TOLERANCES[model.dtype]
    if not torch.allclose(one, two, rtol=tolerance, atol=tolerance / 1000):
        raise SecateurError(
            f"{model.config.model_type!r} is an encoder: its tokens see later ones.\n"
            "Expected a causal language model of transformers."
        )


def _check_layers_alone(model: Any, place: Family) -> None:
    """Layers are run one after the other, each with the hidden states of the one before alone."""
    with torch.no_grad():
        logits = model(input_ids=tokens(0), use_cache=False).logits
        try:
            difference = (_one_by_one(model, place) - logits).abs().max() / logits.abs().max()
            why = (
                "" if difference < TOLERANCES[model.dtype] else f"logits differ by {difference:.1e}"
            )
        except Exception as error:  # the family's own code: anything may come out of it
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if why:
        raise SecateurError(
            f"The layers of {model.config.model_type!r} do not run by themselves, each on the"
            f" hidden states of the one before alone ({why}).\nExpected a model whose layers do."
        )


def _one_by_one(model: Any, place: Family) -> Tensor:
    """The logits where each layer gets the hidden states of the one before, and no more of it.

    The model's own forward goes through its layers; what it hands to them is exchanged.
    """
    source = StreamedModel(model, place, ModuleWeights(model), torch.device("cpu"))
    with source.front() as front:
        hidden, calls = front(tokens(0))
    layers, states = list(model.get_submodule(place.layers)), [hidden]

    def before(layer: Any, args: Any, more: Any) -> Any:
        number = len(states) - 1
        assert layer is layers[number], "layers run in another order"
        args, more = calls[number]
        return (states[-1], *args), more

    def after(layer: Any, args: Any, output: Any) -> None:
        states.append(output[0] if place.tuples else output)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(after).remove)
        model(input_ids=tokens(0), use_cache=False)
    with source.back() as back:
        return back(states[-1])


def _gives_tuples(model: Any, path: str) -> bool:
    seen: list[bool] = []
    hook = model.get_submodule(path)[0].register_forward_hook(
        lambda module, args, output: seen.append(isinstance(output, tuple | list))
    )
    try:
        model(input_ids=tokens(0), use_cache=False)
    finally:
        hook.remove()
    return seen[0]


def _kv_heads(config: Any, found: Sequence[Traced]) -> str | int | None:
    heads = [some for some in found if any(c.kind == "attention" for c in some.couplings)]
    sizes = (heads or found)[0].sizes[0]
    if sizes.K == 1:
        return 1
    names = ("num_key_value_heads", "num_kv_heads")
    stated = next((name for name in names if getattr(config, name, None)), None)
    if sizes.r == 1 and stated and getattr(config, stated) != config.num_attention_heads:
        return None  # a number that the code does not use
    return stated


def _followers(
    config: Any,
    sizes: tuple[Sizes, Sizes],
    path: str,
    layer: int,
    among: tuple[Size, ...] = _COUNTS,
) -> Iterator[tuple[str, str, Size]]:
    """Attributes of the layer's modules that are a count of units in both tiny models."""
    models = [tiny_model(config, choice, 0) for choice in sizes]
    modules = [dict(m.get_submodule(path)[layer].named_modules()) for m in models]
    for name, module in modules[0].items():
        for attribute, number in vars(module).items():
            other = getattr(modules[1].get(name), attribute, None)
            if attribute in _NO_COUNTS or type(number) is not int or type(other) is not int:
                continue
            size = _count((number, other), sizes, among)
            if size is not None and not _says_shape(module, attribute):
                yield name, attribute, size
        for attribute in _read_from_config(module):
            yield name, f"config.{attribute}", _HEAD_COUNTS[attribute]


def _count(
    numbers: tuple[int, int], sizes: tuple[Sizes, Sizes], among: tuple[Size, ...]
) -> Size | None:
    for size in among:
        if tuple(size.at(choice.values) for choice in sizes) == numbers and numbers[0] > 1:
            return size
    return None


def _says_shape(module: nn.Module, attribute: str) -> bool:
    """in_features and the like: they are set from the shapes themselves."""
    weight: Mapping[str, Tensor | None] = module._parameters
    return weight.get("weight") is not None and attribute in (
        "in_features",
        "out_features",
        "nf",
        "nx",
    )


def _read_from_config(module: nn.Module) -> set[str]:
    """Head counts that a module's forward reads from its config, not from itself."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return set()
    return {name for name in _HEAD_COUNTS if re.search(rf"self\.config\.{name}\b", source)}
