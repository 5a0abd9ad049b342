"""The settings that a profile asks for: `--profile`."""

from typing import Any

from ..config import PruneConfig
from ..deployment import held_by
from ..errors import SecateurError
from ..models import OpenModel
from ..profiles import PROFILES, Profile


def profiled(opened: OpenModel, config: PruneConfig) -> PruneConfig:
    """The settings with those of their profile.

    Raises:
        SecateurError: the engine does not compute such a model, or --align is none of its widths.
    """
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
