"""A family that nobody declared: where its layers are, and what counts its units, found too."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import module_view
from ...errors import SecateurError
from ...structure import Coupling
from ...structure.size import Size
from ..families import Family
from ..streamed import StreamedModel, empty_model
from .following import COUNTS, WIDTHS, followers
from .shallow import layer_kinds, layers_path, shallow_config
from .sizes import TOLERANCES, check_counts, stated_kv_heads
from .tiny import dense_config, running_model, tokens
from .trace import Traced, traced


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
    follow: set[tuple[str, str, Size]] = set()
    widths: set[tuple[str, str, Size]] = set()
    for some, layer in zip(found, kinds, strict=True):
        follow |= set(followers(config, some.sizes, path, layer, COUNTS))
        if some.has_heads:
            widths |= set(followers(config, some.sizes, path, layer, WIDTHS))
    return replace(
        place,
        couplings=_joined(coupling for some in found for coupling in some.couplings),
        follow=tuple(sorted(follow, key=str)),
        widths=tuple(sorted(widths - follow, key=str)),
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
        key = (coupling.name, coupling.reader.tensor(""))
        known = joined.setdefault(key, coupling)
        own = {piece.tensor("") for piece in known.slices}
        more = [piece for piece in coupling.slices if piece.tensor("") not in own]
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
    source = StreamedModel(model, place, module_view(model), torch.device("cpu"))
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
    heads = [some for some in found if some.has_heads]
    sizes = (heads or found)[0].sizes[0]
    if sizes.K == 1:
        return 1
    stated = stated_kv_heads(config)
    if sizes.r == 1 and stated and getattr(config, stated) != config.num_attention_heads:
        return None  # a number that the code does not use
    return stated
