"""How good a model is."""

from .perplexity import WINDOWS, Perplexity, perplexities, perplexity, window_lengths
