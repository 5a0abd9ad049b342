"""A causal LM of which only one decoder layer at a time has weights.

The model is built on the meta device; a part gets its tensors when it is entered and gives them
back when it is left. Embeddings, masks, rotary tables and the head are the model's own code: its
forward runs with the decoder layers replaced by stand-ins that record or hand through.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..checkpoint import View
from ..device_memory import Room, sent
from ..memory import give_back
from .families import Family
from .head import Head
from .supply import Supply, stays

Call = tuple[tuple[Any, ...], dict[str, Any]]

_MUCH = 2**24  # elements


class _Unallocated(TorchFunctionMode):
    """Memory that nobody has written to yet is never a buffer's: it need not be there at all.

    No more need that of a constructor's weights, which hardly a buffer (a mask, a table) is as
    large as. With `masks` one is.
    """

    def __init__(self, *, masks: bool) -> None:
        super().__init__()
        self._filled = () if masks else (torch.zeros, torch.ones, torch.rand, torch.randn)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        filling = func in self._filled
        if kwargs.get("device") is None and (
            func is torch.empty or (filling and _elements(args, kwargs) > _MUCH)
        ):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _elements(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many a constructor of tensors, called so, makes."""
    size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
    return math.prod(int(length) for length in size)


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """Build the transformers causal LM of `config` without weights, in evaluation mode.

    Parameters are on meta, and never anywhere else: those of one layer may be more than the memory
    there is. Buffers that no checkpoint holds (rotary frequencies) are real.
    """
    from transformers import AutoModelForCausalLM

    return empty(AutoModelForCausalLM, config, dtype)


def empty(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """The same of any class of transformers, or of an Auto class."""
    model = _constructed(kind, config, dtype, masks=False)
    if any(buffer.is_meta for buffer in model.buffers()):
        model = _constructed(kind, config, dtype, masks=True)
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    # One expert after the other: fused kernels ask for bf16 and hide what an expert reads.
    model.config._experts_implementation = "eager"
    return model


def _constructed(kind: Any, config: Any, dtype: torch.dtype, *, masks: bool) -> Any:
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    make = getattr(kind, "_from_config", None) or partial(kind.from_config, trust_remote_code=False)
    config = copy.deepcopy(config)  # transformers writes the dtype into the one that it gets
    with no_init_weights(), init_empty_weights(include_buffers=False), _Unallocated(masks=masks):
        return make(config, dtype=dtype).eval()


def filled(model: Any, weights: View, dtype: torch.dtype | None = None) -> Any:
    """Give an empty model all its weights at once, in `dtype` (None: their own)."""
    # copies: the weights of a live module are its own
    state = {name: weights.tensor(name).to(dtype=dtype, copy=True) for name in weights.specs}
    model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()
    return model


class StreamedModel:
    """The layer source of the streaming pass: see `secateur.stats.LayerSource`.

    `resident` says whether weights that were read stay (`auto`: on a GPU, if they leave half of it;
    `yes`, `no`). `room` is what hidden states may take of the device (default: what is free less a
    margin); models of one run share it.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        weights: View,
        device: torch.device,
        identity: Callable[[], str] = str,
        name: str = "",
        *,
        resident: str = "auto",
        room: Room | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self._identity = identity
        self.device = device
        self.dtype: torch.dtype = model.dtype
        self._path = family.layers
        self._tuples = family.tuples
        self._layers: list[nn.Module] = list(model.get_submodule(family.layers))
        self._weights = weights
        self.room, self.resident = room or Room(device), resident
        size = sum(one.numel() for one in model.parameters()) * self.dtype.itemsize
        self.supply = Supply(
            weights,
            self.dtype,
            self.room,
            keeps=stays(resident, device, size),
            size=size,
        )
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def identity(self) -> str:
        """A hash of weights and config; empty where nobody knows one."""
        own = self._identity()
        return f"{own} {self.model.config._attn_implementation}" if own else ""

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Decoder layer `index` with its weights on the device.

        Raises:
            SecateurError: a weight is not finite, or its file is corrupt.
        """
        self.supply.arrive(index)
        with self._materialised(f"{self._path}.{index}"):
            yield self._layers[index]

    def expect(self, index: int | None) -> None:
        """Read layer `index` while another one runs, where that is of use; None: leave off."""
        if index is None:
            self.supply.leave_off()
        elif self.supply.ahead is not None:
            self.supply.expect(index, self._names_of(index))

    @contextmanager
    def front(self) -> Iterator[Callable[[Tensor], tuple[Tensor, list[Call]]]]:
        """A function from token ids [batch, token] to the first hidden states and layer calls.

        The hidden states are [batch, token, hidden] (of some families several such streams, [batch,
        token, stream, hidden]); the calls are, for each layer, the arguments
        besides the hidden states that the model's own forward passes to it.
        """
        head = self.model.get_output_embeddings()
        with ExitStack() as stack:
            self._enter_outside(stack, skip=head)
            yield self._record

    @contextmanager
    def back(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from the last hidden states [batch, token, hidden] to logits.

        It is differentiable where the hidden states require gradients.
        """
        with ExitStack() as stack:
            self._enter_outside(stack, skip=self.model.get_input_embeddings())
            yield Head(self.model, self._layers, self._logits, self.device)

    def _record(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        calls: list[Call] = []

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(((hidden, *args), kwargs))
            return self._output(hidden)

        # not every class has its base under the prefix that it states
        base = self.model.get_submodule(self._path.partition(".")[0])
        with self._stand_in(record), torch.no_grad():
            base(input_ids=sent(ids, self.device), use_cache=False)
        return calls[0][0][0], [(args[1:], kwargs) for args, kwargs in calls]

    def _logits(self, hidden: Tensor) -> Tensor:
        # Each token for itself: positions and masks, which the layers alone look at, stay small.
        tokens = hidden.to(self.device).flatten(0, 1).unsqueeze(1)
        width = self.model.get_input_embeddings().weight.shape[1]
        embedded = tokens.new_zeros(len(tokens), 1, width)

        def hand_through(_: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._output(tokens)

        with (
            self._stand_in(hand_through),
            torch.set_grad_enabled(hidden.requires_grad),
        ):
            logits: Tensor = self.model(inputs_embeds=embedded, use_cache=False).logits
        return logits.view(*hidden.shape[:2], -1)

    def _output(self, hidden: Tensor) -> Any:
        """What a layer returns: some families wrap it, with None for the attention weights."""
        return (hidden, None) if self._tuples else hidden

    @contextmanager
    def _stand_in(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Replace the layers' forward (on the instance: attributes stay readable)."""
        for layer in self._layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def _enter_outside(self, stack: ExitStack, skip: nn.Module | None) -> None:
        """Materialise everything but the decoder layers and `skip`."""
        for path, module in self.model.named_modules():
            inside = path == self._path or path.startswith(self._path + ".")
            if module is skip or inside or not module._parameters:
                continue
            stack.enter_context(self._materialised(path, recurse=False))

    @contextmanager
    def _materialised(self, path: str, *, recurse: bool = True) -> Iterator[None]:
        empty: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for module, name, full, parameter in list(self._empty(path, recurse=recurse)):
                empty.append((module, name, parameter))
                module._parameters[name] = self.supply.parameter(self._stored(full))
            yield
        finally:
            for module, name, parameter in empty:
                module._parameters[name] = parameter
            give_back()

    def _empty(
        self, path: str, *, recurse: bool
    ) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
        """The parameters without weights in a module: where each is, its full name, itself."""
        root = self.model.get_submodule(path)
        modules = dict(root.named_modules(prefix=path)) if recurse else {path: root}
        for prefix, module in modules.items():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    yield module, name, f"{prefix}.{name}", parameter

    def _names_of(self, index: int) -> list[str]:
        """The tensors of a layer as they are stored."""
        found = self._empty(f"{self._path}.{index}", recurse=True)
        return [self._stored(full) for _, _, full, _ in found]

    def _stored(self, name: str) -> str:
        """The name of the tensor that a parameter is read from."""
        return name if name in self._weights.specs else str(self.model.all_tied_weights_keys[name])
