"""How good a model is."""

from .agreement import Agreement, Beside, beside
from .continuations import continuations, end_tokens
from .divergence import divergences
from .likelihood import LogLikelihood, log_likelihoods
from .perplexity import WINDOWS, Perplexity, perplexities, perplexity, window_lengths
from .standard_error import Estimate, mean_of_draws, mean_of_means, mean_over_windows
from .states import last_states
from .tasks import SEVEN, ZERO_SHOT, Asked, TaskResult, asked_tasks, changes, harness, means
