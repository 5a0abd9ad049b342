"""Recovery: a short training that brings back what the cut took."""

from .batch import TOKENS_AT_ONCE, Batch
from .earlier import Check, Outcome
from .grid import GRIDS, Quantised, quantised
from .groupwise import Groupwise, GroupwiseLinear
from .halves import Halves
from .lora import Lora
from .objectives import CachedDistillation, FullDistillation, Objective, next_token
from .pace import Clock, Pace, most_steps, timed_check, timed_pass, timed_steps
from .plain_weights import Plain, narrowed
from .recompute import fits, kept_bytes, recomputed
from .schedule import Schedule
from .state import STATE_FORMAT, State, damaged, forget_other, read_state, steps_file, write_state
from .together import Copies
from .trainer import Trainer
