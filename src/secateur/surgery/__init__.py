"""The only code that cuts weights: slices by a plan, and repairs what a cut leaves behind."""

from .bias import bias
from .depth import WHOLE, with_consumers
from .knife import pruned_view, removed_parameters
from .mask_tuning import mask_tuning
from .normal import Normal
from .refit import Fit, refit, refit_on_held_out
from .repair import REPAIRS, Repair, repair
from .rows import Rows, Tokens, gathering
from .sequential import Repaired, sequential_repair
from .streams import TARGETS
from .sums import Products, Sums
from .surgeon import ConsumerReport
