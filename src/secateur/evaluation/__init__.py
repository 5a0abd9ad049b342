"""How good a model is."""

from .perplexity import WINDOWS, Perplexity, perplexity, summed_loss, window_lengths
