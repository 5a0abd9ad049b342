"""Writing a model for the engines that run it, one registered function a destination."""

from . import gguf_destination, graph_destinations, stock_destination
from .destinations import DESTINATIONS, Asked, Destination, Written, destination
from .gguf_architectures import family_of
from .gguf_layout import held_by
