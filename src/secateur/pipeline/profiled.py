"""What engines ask for: the settings of a profile, and widths that devices share out."""

from typing import Any

from ..config import PruneConfig
from ..deployment import held_by
from ..errors import SecateurError
from ..models import OpenModel
from ..profiles import PROFILES, Profile


def profiled(opened: OpenModel, config: PruneConfig) -> PruneConfig:
    """The settings with those of their profile.

    Raises:
        SecateurError: the engine does not compute such a model, --align is none of its widths, or
            the dense model's are none that --tensor-parallel devices share out.
    """
    _check_parallel(opened, config.tensor_parallel)
    profile = PROFILES[config.profile]
    update: dict[str, Any] = {}
    if profile.row > 1:
        update["align"] = _width(config, profile)
    # what computes the model, whatever the widths are, is known before anything is cut
    if profile.stock or (profile.gguf and not any(one.varied for one in held_by(opened))):
        update["stock"] = True
    return config.model_copy(update=update) if update else config


def _width(config: PruneConfig, profile: Profile) -> int:
    align = config.align or profile.row
    if align % profile.row:
        raise SecateurError(
            f"--profile {config.profile} keeps MLP widths at multiples of {profile.row}, and"
            f" --align {align} is none.\nType --align {-(-align // profile.row) * profile.row}, or"
            " leave it out."
        )
    return align


def _check_parallel(opened: OpenModel, devices: int) -> None:
    """Make sure that the devices can share out what a layer that loses nothing has.

    KV heads that are fewer than the devices are copied, if their number divides the devices'.

    Raises:
        SecateurError: they cannot.
    """
    heads = getattr(opened.config, "num_attention_heads", devices)
    if isinstance(heads, int) and heads % devices:
        raise SecateurError(
            f"--tensor-parallel {devices}: the model has {heads} query heads, and so many devices"
            " do not share them out evenly.\nType a number that divides them."
        )
    for axis in opened.structures.axes if devices > 1 else ():
        count = axis.units // axis.groups
        if axis.size == "K" and count % devices and devices % count:
            what = f"{count} KV heads"
        elif axis.size == "I" and count % devices:
            what = f"{count} MLP channels"
        else:
            continue
        raise SecateurError(
            f"--tensor-parallel {devices}: layer {axis.layer} has {what}, and so many devices do"
            " not share them out evenly.\nType a number that divides them."
        )
