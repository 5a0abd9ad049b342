"""Traced discovery: the coupled structures of a family, found by running one tiny layer of it."""

from .shallow import layer_kinds, shallow_config
from .sizes import TOLERANCES, tiny_choices
from .tiny import (
    dense_config,
    linearise_norms,
    norm_sizes,
    running_model,
    tiny_model,
    tokens,
)
from .trace import Traced, traced
from .undeclared import undeclared_family
