"""The model that a config describes, without weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from .. import modeling_secateur
from ..modeling_secateur import PREFIX
from ..models import Family, empty_model


def skeleton(family: Family, raw: Mapping[str, Any]) -> Any:
    """The family's stock model for the config.json `raw`, on the meta device."""
    config = getattr(transformers, family.config).from_dict(copy.deepcopy(dict(raw)))
    return empty_model(config, torch.float32)


def lenient_config(family: Family, raw: Mapping[str, Any]) -> Any:
    """The config of `raw` as pruned folders read it: any head count goes with any hidden size."""
    own = getattr(modeling_secateur, PREFIX + family.config)
    given = copy.deepcopy(dict(raw))  # some classes write into what they are given
    return own.from_dict({**given, "model_type": own.model_type, "pruned_modules": {}})


def lenient_skeleton(family: Family, raw: Mapping[str, Any]) -> Any:
    """The stock modules for `raw`, without the checks of the stock config."""
    return empty_model(lenient_config(family, raw), torch.float32)
