"""Recovery: a short training that brings back what the cut took."""

from .batch import TOKENS_AT_ONCE, Batch
from .earlier import Check, Outcome
from .grid import GRIDS, Quantised, quantised
from .groupwise import Groupwise, GroupwiseLinear
from .halves import Halves
from .lora import Lora
from .objectives import CachedDistillation, FullDistillation, Objective, next_token
from .plain_weights import Plain, narrowed
from .recompute import fits, kept_bytes, recomputed
from .state import STATE_FORMAT, forget_other, read_state
from .trainer import Schedule, Trainer
