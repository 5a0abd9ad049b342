"""How good a model is."""

from .perplexity import WINDOWS, Perplexity, perplexity, window_lengths
