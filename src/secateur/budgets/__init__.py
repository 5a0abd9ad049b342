"""What a user has: a share of the parameters, a number of them, memory, time. One budget a file.

To add one, write a function like that of `memory.py`, import its file here, and give it a setting.
"""

from . import memory, parameters, ratio, speed
from .amounts import BYTES, PARAMETERS, TIME, amount
from .cache import Cache, latent_width, tokens_seen, windows_of
from .registry import BUDGETS, Budget, register_budget
from .table import Attention, Table, Timer, Work, measured_table
from .timing import decoding, prompting, token_seconds, work_seconds

__all__ = [
    "BUDGETS",
    "BYTES",
    "PARAMETERS",
    "TIME",
    "Attention",
    "Budget",
    "Cache",
    "Table",
    "Timer",
    "Work",
    "amount",
    "decoding",
    "latent_width",
    "measured_table",
    "memory",
    "parameters",
    "prompting",
    "ratio",
    "register_budget",
    "speed",
    "token_seconds",
    "tokens_seen",
    "windows_of",
    "work_seconds",
]
