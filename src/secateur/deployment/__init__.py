"""Writing a model for the engines that run it, one registered function a destination."""

from . import deci_destination, gguf_destination, graph_destinations, stock_destination
from .destinations import DESTINATIONS, Asked, Destination, Written, destination
from .gguf_layout import held_by
from .layers import family_of
