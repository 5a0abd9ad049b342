"""The settings that a profile asks for: `--profile`."""

from typing import Any

import transformers

from ..config import PruneConfig
from ..deployment import ARCHITECTURES
from ..errors import SecateurError
from ..models import OpenModel
from ..profiles import PROFILES, Profile


def profiled(opened: OpenModel, config: PruneConfig) -> PruneConfig:
    """The settings with those of their profile.

    Raises:
        SecateurError: the engine has no such family, or --align is none of its widths.
    """
    profile = PROFILES[config.profile]
    update: dict[str, Any] = {}
    if profile.row > 1:
        update["align"] = _width(config, profile)
    if profile.stock or (profile.target == "gguf" and not _varies(opened, config.profile)):
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


def _varies(opened: OpenModel, name: str) -> bool:
    """Whether llama.cpp takes layers of several widths of this family.

    Raises:
        SecateurError: it is none that is written for it.
    """
    family = getattr(transformers, opened.family.config).model_type
    if family not in ARCHITECTURES:
        raise SecateurError(
            f"--profile {name}: --to gguf knows no layers of the family {family!r}.\nIt knows:"
            f" {', '.join(ARCHITECTURES)}. Leave the profile out, or type --profile uniform."
        )
    return any(one.varied for one in ARCHITECTURES[family])
