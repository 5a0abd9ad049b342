"""The settings of a run: strict, frozen, in and out as TOML."""

from .files import read_record, read_toml, to_toml
from .pruning import OF_FUSIONS, PruneConfig, make_config
from .reading import READING, Reading
from .recovery import LOSSES, RECIPES, TRAINED, Recipe, RecoverConfig, make_recover_config
from .typed import PruneSettings, RecoverSettings

__all__ = [
    "LOSSES",
    "OF_FUSIONS",
    "READING",
    "RECIPES",
    "TRAINED",
    "PruneConfig",
    "PruneSettings",
    "Reading",
    "Recipe",
    "RecoverConfig",
    "RecoverSettings",
    "make_config",
    "make_recover_config",
    "read_record",
    "read_toml",
    "to_toml",
]
