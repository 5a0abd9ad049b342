"""What passes must multiply at one layer's memory, in multiples of plain passes.

A layer that has no room for what is inside it runs forward twice before it runs backward. What is
no product of a linear (attention's own, elementwise work, reading weights) is not counted on either
side, so that a pass can lie below its floor where the plain one has more of it.
"""

from typing import Any

from torch import nn

import secateur
from secateur.methods import METHODS


class Floors:
    """Multiplications a token of one layer and of the head of a plain model; floors of passes."""

    def __init__(self, model: Any, folder: str) -> None:
        axes = secateur.open_model(folder).structure.axes
        self.layers = model.config.num_hidden_layers
        linears = [one for one in model.modules() if isinstance(one, nn.Linear)]
        self.head = model.get_output_embeddings().weight.numel()
        self.layer = (sum(one.weight.numel() for one in linears) - self.head) / self.layers
        consumers = {one.consumer.module: one for one in axes if one.consumer.linear}
        shapes = [model.get_submodule(name).weight.shape for name in consumers]
        self.normal = sum(i * (i / 2 + o) for o, i in shapes) / self.layers

    @property
    def forward(self) -> float:
        """Multiplications of all layers and the head."""
        return self.layers * self.layer + self.head

    @property
    def walk(self) -> float:
        """Of the layers without the head, in forwards."""
        return self.layers * self.layer / self.forward

    @property
    def refit(self) -> float:
        """Of two walks and the normal matrices, in forwards."""
        return 2 * self.walk + self.layers * self.normal / self.forward

    def gradients(self, method: str) -> float:
        """Of gradients in the layers that a method scores, in forwards and backwards.

        The way up, and down to the lowest of these: each layer that is passed on the way down runs
        forward and gives a gradient of its input; one that is scored those of its weights, too.
        """
        first, last = (round(share * self.layers) for share in METHODS[method].untouched)
        way = self.layers + 2 * (self.layers - first) + self.layers - first - last
        return (way * self.layer + 2 * self.head) / (3 * self.forward)
