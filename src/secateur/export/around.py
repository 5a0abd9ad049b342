"""A pruned text decoder back in its multimodal model, where that model's class can hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint import View, only, renamed, together
from ..models import OpenModel, Outer, reverted
from ..models.fitted import expected
from ..progress import note
from .form import Form

# What a decoder alone says of itself, and one inside another model does not.
_OWN = ("architectures", "model_type")


@dataclass(frozen=True, kw_only=True)
class WholeForm(Form):
    """A decoder that is written with the model around it: `config` and `weights` are the decoder's.

    `whole` has the tensors of the two under the names of `skeleton`, the empty model of
    `together`, their config.json.
    """

    together: Mapping[str, Any]
    whole: View
    skeleton: Any

    @property
    def written_config(self) -> Mapping[str, Any]:
        """The config.json that is written."""
        return self.together

    @property
    def stored(self) -> View:
        """All tensors of the two, under the names that their family has on disk."""
        return reverted(self.whole, self.skeleton)

    @property
    def architecture(self) -> str:
        """The class that loads the folder."""
        return type(self.skeleton).__name__


def with_around(form: Form, opened: OpenModel) -> Form:
    """`form` with the multimodal model that its decoder came from, if that can hold it.

    If it cannot, the user is told, and the decoder alone is written.
    """
    outer = opened.around
    if outer is None:
        return form
    whole = whole_form(form, outer) if form.stock else None
    if whole is None:
        why = "sizes" if form.stock else "widths that differ between layers"
        note(
            f"{outer.architecture} cannot hold a decoder of these {why}: the text model alone is"
            " written (--search uniform --attention-ratio 0 often gives one that fits)"
        )
    return whole or form


def whole_form(form: Form, outer: Outer) -> WholeForm | None:
    """The two together; None if the class around does not build exactly these tensors."""
    changed = {
        key: value
        for key, value in form.config.items()
        if key not in _OWN and (key not in outer.text or outer.text[key] != value)
    }
    raw = outer.with_text(changed)
    assert outer.weights is not None, "a form has weights"
    whole = _inside(form.weights, outer.weights, outer.names)
    dtype = next(iter(form.weights.specs.values())).dtype
    try:
        skeleton = outer.empty(raw, dtype if dtype.is_floating_point else torch.float32)
    except Exception:  # its config or constructor does not take these sizes
        return None
    built, there = (
        {name: spec.shape for name, spec in specs.items()}
        for specs in (expected(skeleton), whole.specs)
    )
    if built != there:
        return None
    return WholeForm(form.config, form.weights, True, together=raw, whole=whole, skeleton=skeleton)


def _inside(inner: View, around: View, names: Mapping[str, str]) -> View:
    """The tensors of the decoder in place of those in the model around it, in its order."""
    own = renamed(inner, {names.get(name, name): name for name in inner.specs})
    gone = set(names.values()).difference(own.specs)
    both = together(around, own)
    return only(both, (name for name in both.specs if name not in gone))
