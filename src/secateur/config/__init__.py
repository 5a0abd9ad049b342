"""The settings of a run: strict, frozen, in and out as TOML."""

from .benchmark import BenchConfig, make_bench_config
from .budgeting import displaced
from .pruning import OF_FUSIONS, PRUNE_GROUPS, PruneConfig, make_config
from .reading import READING, Reading
from .recovery import (
    HOW_LONG,
    LOSSES,
    OWN,
    RECIPES,
    RECOVER_GROUPS,
    TRAINED,
    Recipe,
    RecoverConfig,
    make_recover_config,
    recipes_of,
)
from .sweeping import NOT_COMPARED, SweepConfig, make_sweep, read_sweep
from .toml import read_record, read_toml, to_toml
from .typed import BenchSettings, PruneSettings, RecoverSettings
