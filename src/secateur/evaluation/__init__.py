"""How good a model is."""

from .divergence import divergences
from .perplexity import WINDOWS, Perplexity, perplexities, perplexity, window_lengths
