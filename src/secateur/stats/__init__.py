"""The streaming pass over decoder layers, and what it can collect on the way."""

from .activations import Activations
from .collect import STATISTICS, Reduction, Statistics, Tally, collect
from .gradients import GRADIENTS, collect_gradients
from .gram import Gram
from .moments import Moments
from .norm import Norm
from .stream import LayerSource, LayerStep, Walk
from .taylor import Taylor
