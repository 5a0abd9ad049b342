"""Writing a model for the engines that run it, one registered function a format."""

from . import gguf_target, graph_targets, stock_target
from .gguf_architectures import ARCHITECTURES
from .targets import TARGETS, Asked, Target, Written, target
