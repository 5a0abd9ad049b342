"""How good a model is."""

from .divergence import divergences, last_states
from .perplexity import WINDOWS, Perplexity, perplexities, perplexity, window_lengths
