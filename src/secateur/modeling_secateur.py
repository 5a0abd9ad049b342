"""Loads a decoder LLM whose layers have different widths.

This file travels inside every pruned checkpoint that a stock class cannot express, so that the
folder loads with `trust_remote_code=True` and nothing but torch and transformers installed. The
`secateur` package registers the very same classes, so that after `import secateur` the folder
loads without that flag.

`SecateurLlamaConfig` and `SecateurLlamaModel` are the stock `LlamaConfig` and `LlamaModel` with one
addition, and so for every other family: after the stock constructor has built the dense model, the
modules listed in `config.pruned_modules` get their true sizes. `SecateurLlamaForCausalLM` and
`SecateurLlamaForSequenceClassification` are the stock classes around that base model. Where a
config is for the models of another family (InternLM3's for Llama's), ours have the config's name.
Paths are those of the causal model.

    "pruned_modules": {
        "model.layers.0.mlp.down_proj": {
            "shapes": {"weight": [64, 96], "bias": [64]},
            "attributes": {"in_features": 96}
        },
        "model.layers.0.self_attn": {"attributes": {"num_key_value_groups": 2}},
        "transformer.h.0.self_attention": {
            "heads": {"of": 8, "kept": [0, 3], "arguments": ["alibi"]}
        }
    }

`shapes` are those of a module's own parameters, `attributes` the numbers that follow from them (in
`config.x`, of the module's own copy of the config). `heads` says that the module had `of` heads
and kept these: arguments with one row a head (the slopes of ALiBi) are cut to their rows.
`{"absent": "tuple"}` (or "tensor", by what it returns) stands for a module that was pruned whole.

`{"bits": 4, "group": 32, "modules": {"model.layers.0.mlp.down_proj": 96}}` in `config.packed` names
the linears that hold their weights as codes of so many bits, with their inputs (`PackedLinear`).

`config.per_layer_config` holds the widths of each layer in transformers' own schema: caches and
other readers of the config find them there. Read without a layer, `config.num_key_value_heads` and
its like are numbers that no layer exceeds.

It runs on the versions of transformers in `RANGE`, and on others fails with that sentence.

Licence: Apache-2.0.
"""

import copy
import dataclasses
import functools
import logging
import sys
from typing import Any

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import nn

# By each of these all families were loaded: see benchmarks/transformers_versions.py.
MEASURED = ("4.57.6", "5.0.0", "5.8.0", "5.15.0", "5.23.0", "5.24.0")
RANGE = (
    "transformers 4.57 to 5.x (mixtures of experts from 5.8 on, GPT-NeoX from 5.15 on), measured on"
    f" {', '.join(MEASURED)}"
)
RUNS_ON = f"modeling_secateur.py runs on {RANGE}; this is transformers {transformers.__version__}."
_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if not (4, 57) <= _VERSION < (6, 0):
    raise ImportError(RUNS_ON)

PREFIX = "Secateur"
# What the config of a pruned model has beyond the stock class' keys.
OWN_KEYS = (
    "auto_map",
    "per_layer_config",
    "pruned_modules",
    "packed",
    "allow_global_per_layer_attribute_access",
)

# The stock constructor reads the dense widths from a config with per-layer widths on purpose, and
# readers that know one width only get the dense one; transformers would warn of each.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(
    lambda record: "Reading global config value" not in record.getMessage()
)


def resize(model: nn.Module, pruned_modules: dict[str, dict[str, Any]]) -> None:
    """Give every listed module of the freshly built dense `model` its true size, in place."""
    for path, sizes in pruned_modules.items():
        try:
            _resize_one(model, path, sizes)
        except AttributeError as error:
            raise ValueError(f"config.pruned_modules: {path}: {error}. {RUNS_ON}") from error


def _resize_one(model: nn.Module, path: str, sizes: dict[str, Any]) -> None:
    if "absent" in sizes:
        parent, _, name = path.rpartition(".")
        absent = Absent(gives_tuple=sizes["absent"] == "tuple")
        setattr(model.get_submodule(parent), name, absent)
        return
    module = model.get_submodule(path)
    for name, shape in sizes.get("shapes", {}).items():
        _reshape(module, name, shape)
    for attribute, value in sizes.get("attributes", {}).items():
        if not _set(module, attribute, value):
            raise AttributeError(f"no attribute {attribute!r}")
    if "heads" in sizes:
        rows = functools.partial(_keep_rows, **sizes["heads"])
        module.register_forward_pre_hook(rows, with_kwargs=True)


def pack(model: nn.Module, packed: dict[str, Any], paths: list[str]) -> None:
    """Put a `PackedLinear` in place of every linear in `paths`."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        linear: Any = model.get_submodule(path)
        small = PackedLinear(
            linear.in_features,
            linear.out_features,
            packed["bits"],
            packed["group"],
            bias=linear.bias,
        )
        setattr(model.get_submodule(parent), name, small)


def unpacked(codes: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """The codes [row, width], uint8, of rows of bytes that hold `bits` each, lowest bits first."""
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
        return ((codes[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :width]
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    ones = ((codes[..., None] >> places) & 1).flatten(-2)[..., : width * bits]
    values = 2 ** torch.arange(bits, dtype=torch.uint8, device=codes.device)
    return (ones.unflatten(-1, (width, bits)) * values).sum(dim=-1, dtype=torch.uint8)


class PackedLinear(nn.Module):
    """A linear whose weight is w = scale * code + zero, one scale and zero for each group.

    A group is `group` consecutive input columns of one output row (the last one may be shorter).
    `codes` are packed into bytes; `scales` and `zeros` [out, group] are the bit patterns of
    float16, kept as int16 so that no change of the model's dtype rounds them.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int,
        *,
        bias: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group = bits, group
        groups = -(-in_features // group)
        size = (out_features, -(-in_features * bits // 8))
        self.register_buffer("codes", torch.zeros(size, dtype=torch.uint8))
        for name in ("scales", "zeros"):
            self.register_buffer(name, torch.zeros((out_features, groups), dtype=torch.int16))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] that the codes stand for."""
        codes, width = unpacked(self.codes, self.bits, self.in_features), self.in_features
        scales, zeros = (
            part.view(torch.float16).float().repeat_interleave(min(self.group, width), dim=1)
            for part in (self.scales, self.zeros)
        )
        return (codes.float() * scales[:, :width] + zeros[:, :width]).to(dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The stock linear, with the weight made anew each time."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return nn.functional.linear(inputs, self.dequantised(inputs.dtype), bias)


class Absent(nn.Module):
    """In place of an attention or MLP that was pruned whole: it adds nothing."""

    def __init__(self, *, gives_tuple: bool) -> None:
        super().__init__()
        self.gives_tuple = gives_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros like the hidden states; the residual itself where the module would add to it."""
        given = [*args, *(kwargs[n] for n in ("hidden_states", "residual") if n in kwargs)]
        hidden = [value for value in given if isinstance(value, torch.Tensor)]
        residual = hidden[1] if len(hidden) > 1 and hidden[1].shape == hidden[0].shape else None
        output = torch.zeros_like(hidden[0]) if residual is None else residual
        return (output, None) if self.gives_tuple else output


def _reshape(module: nn.Module, name: str, shape: list[int]) -> None:
    """The first part of the parameter, or zeros for one that the dense module does not have."""
    old = module._parameters.get(name)
    if old is None:
        like: Any = module.weight
        new = torch.zeros(shape, dtype=like.dtype, device=like.device)
    else:
        new = old.detach()[tuple(slice(size) for size in shape)].clone()
    module.register_parameter(name, nn.Parameter(new))


def _set(module: Any, attribute: str, value: Any) -> bool:
    owner, _, name = attribute.rpartition(".")
    if owner:
        setattr(module, owner, copy.copy(getattr(module, owner)))
        module = getattr(module, owner)
    known = hasattr(module, name)
    if known:
        setattr(module, name, value)
    return known


def _keep_rows(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    of: int,
    kept: list[int],
    arguments: list[str],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cut arguments with one row a head, [batch * head, ...] or [batch, head, ...], to `kept`."""
    cut = dict(kwargs)
    for name in arguments:
        rows = kwargs.get(name)
        if isinstance(rows, torch.Tensor) and rows.dim() == 4 and rows.shape[1] == of:
            cut[name] = rows[:, kept]
        elif isinstance(rows, torch.Tensor) and rows.dim() == 3:
            cut[name] = rows.unflatten(0, (-1, of))[:, kept].flatten(0, 1)
    return args, cut


def _config_class(name: str) -> type:
    stock = getattr(transformers, name.removeprefix(PREFIX))
    own_type = f"{PREFIX.lower()}_{stock.model_type}"

    def validate_architecture(self: Any) -> None:
        """The stock check ties hidden size to one head count; here every layer has its own."""

    def to_dict(self: Any) -> dict[str, Any]:
        """The stock one. PEFT asks for it just before it looks for the type in its tables."""
        _tell_peft(stock.model_type, own_type)
        return dict(stock.to_dict(self))

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, *args, **_old_names(kwargs))

    cls = type(
        name,
        (stock,),
        {
            "__module__": __name__,
            "__doc__": f"{stock.__name__} with `pruned_modules`, see the top of this file.",
            "model_type": own_type,
            "validate_architecture": validate_architecture,
            "to_dict": to_dict,
            **({} if dataclasses.is_dataclass(stock) else {"__init__": init}),
        },
    )
    return strict(cls) if dataclasses.is_dataclass(stock) else cls


def _old_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the rotation as transformers 4 calls it, where only the new name is given."""
    rope = settings.get("rope_parameters")
    if _VERSION >= (5, 0) or not rope or "rope_theta" in settings:
        return settings
    full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention")
    old = {key: full[key] for key in ("rope_theta", "partial_rotary_factor") if key in full}
    if full.get("rope_type", "default") != "default":
        old["rope_scaling"] = {key: full[key] for key in full if key not in old}
    if sliding:
        old["rope_local_base_freq"] = sliding["rope_theta"]
    return {**settings, **old}


def _tell_peft(stock: str, own: str) -> None:
    """Enter our type into PEFT's tables of default targets, if PEFT has been imported."""
    tables: Any = sys.modules.get("peft.utils.constants")
    for name, table in vars(tables).items() if tables else ():
        if not name.startswith("TRANSFORMERS_MODELS_TO_") or not isinstance(table, dict):
            continue
        if stock in table:
            table.setdefault(own, table[stock])
        elif name == "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING":
            table.setdefault(own, "all-linear")


# transformers looks for these in the source of a class' module, and this file is not the family's.
_FEATURES = ("_can_set_attn_implementation", "_can_set_experts_implementation")


def _asked_of(stock: Any) -> dict[str, Any]:
    """Class methods that give what the stock class gives: which kernels can be chosen."""

    def asked(name: str) -> Any:
        return classmethod(lambda cls: getattr(stock, name)())

    return {name: asked(name) for name in _FEATURES if hasattr(stock, name)}


def fit(model: Any, config: Any) -> None:
    """Make the freshly built `model` the pruned one: the base model, then what lies around it.

    A base model has the paths of `config.pruned_modules` and `config.packed` without its prefix.
    """
    paths = [*config.pruned_modules, *(getattr(config, "packed", None) or {}).get("modules", ())]
    name = next((p.partition(".")[0] for p in paths if "." in p), model.base_model_prefix)
    prefix, inner = f"{name}.", getattr(model, name, None)
    if inner is None:
        _fit_paths(model, config, prefix)
    elif not type(inner).__name__.startswith(PREFIX):
        width = model.get_input_embeddings().weight.shape[1]
        name = own_name(type(config).__name__, type(inner).__name__)
        # one that transformers does not show by name (TrOCR's) is no model by itself
        inner.__class__ = getattr(sys.modules[__name__], name, type(inner))
        _fit_paths(inner, config, prefix)
        _fit_paths(model, config, "", prefix)
        _narrow_heads(model, config, width)
    else:  # built by AutoModel, fitted by its own constructor
        _fit_paths(model, config, "", prefix)
        _narrow_heads(model, config, inner.config.hidden_size)


def _fit_paths(model: nn.Module, config: Any, prefix: str, without: str | None = None) -> None:
    """Fit the modules below `prefix`, or those that are not below `without` and are there."""
    there = dict(model.named_modules())
    packed = getattr(config, "packed", None) or {}

    def own(path: str) -> bool:
        if without is None:
            return path.startswith(prefix)
        return not path.startswith(without) and path in there

    sizes = {p.removeprefix(prefix): s for p, s in config.pruned_modules.items() if own(p)}
    resize(model, sizes)
    if packed:
        pack(model, packed, [p.removeprefix(prefix) for p in packed["modules"] if own(p)])


def _narrow_heads(model: Any, config: Any, width: int) -> None:
    """Give a new head (a classifier's) the hidden width that is left."""
    left = model.get_input_embeddings().weight.shape[1]
    for name, head in model.named_children():
        reads = isinstance(head, nn.Linear) and head.in_features == width != left
        if reads and name not in config.pruned_modules:
            _reshape(head, "weight", [head.out_features, left])
            head.in_features = left


def own_name(config: str, model: str) -> str:
    """What the pruned form of the stock class `model` is called, for the stock config `config`."""
    config, model = config.removeprefix(PREFIX), model.removeprefix(PREFIX)
    stock = getattr(transformers, model, None)
    ending = next((end for end in _MAPPINGS if model.endswith(end)), "")
    if stock is None or stock.config_class.__name__ == config or not ending:
        return PREFIX + model
    return PREFIX + config.removesuffix("Config") + ending


def _stock_classes(name: str) -> tuple[Any, Any] | None:
    """The stock config and model that the model called `name` here is made of, if there are any."""
    name = name.removeprefix(PREFIX)
    if hasattr(transformers, name):
        stock = getattr(transformers, name)
        return stock.config_class, stock
    ending = next((end for end in _MAPPINGS if name.endswith(end)), "")
    config = getattr(transformers, f"{name.removesuffix(ending)}Config", None)
    mapping = getattr(transformers, _MAPPINGS[ending]) if ending else {}
    return (config, mapping[config]) if config is not None and config in mapping else None


def _model_class(name: str, stock_config: Any, stock: Any) -> type:
    config_class = getattr(sys.modules[__name__], PREFIX + stock_config.__name__)

    # vLLM asks isinstance of what stands in this signature, so that `Any` may not
    def init(self: object, config: object, *args: Any, **kwargs: Any) -> None:
        experts = any(getattr(config, name, None) for name in _EXPERTS)
        if experts and _VERSION < (5, 8):  # their config, and before 5.0 their tensors, differ
            raise ValueError(RUNS_ON)
        stock.__init__(self, config, *args, **kwargs)
        if hasattr(self, "embed_out") and _VERSION < (5, 15):  # GPT-NeoX's head before 5.15
            raise ValueError(RUNS_ON)
        fit(self, config)

    def initialize_weights(self: Any) -> None:
        # Of code that is not transformers' own, a module without tensors counts as initialised:
        # a stock class that fills its children's buffers there would leave them as garbage.
        self.is_custom_code = lambda: False
        try:
            stock.initialize_weights(self)
        finally:
            del self.is_custom_code

    own = {"initialize_weights": initialize_weights} if hasattr(stock, "initialize_weights") else {}
    cls: Any = type(
        name,
        (stock,),
        {
            "__module__": __name__,
            "__doc__": f"{stock.__name__} with layers of different widths.",
            "__init__": init,
            "config_class": config_class,
            "base_model_prefix": _PREFIXES.get(stock.base_model_prefix, stock.base_model_prefix),
            **own,
            **_asked_of(stock),
        },
    )
    # save_pretrained then copies this file beside the weights, whoever loaded the model.
    config_class.register_for_auto_class("AutoConfig")
    auto = next((auto for end, auto in _AUTO_CLASSES.items() if name.endswith(end)), "AutoModel")
    cls.register_for_auto_class(auto)
    if auto == "AutoModel":
        transformers.AutoModel.register(config_class, cls, exist_ok=True)
    elif stock_config in transformers.MODEL_MAPPING:
        # stock classifiers build the model that they wrap by `AutoModel`
        base = transformers.MODEL_MAPPING[stock_config].__name__
        getattr(sys.modules[__name__], own_name(stock_config.__name__, base))
    return cls


# What transformers 4 calls the text model of Gemma-3, whose tensors are below `model`.
_PREFIXES = {"language_model": "model", "": "model"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}
# By the end of a class' name, where transformers finds the class of a config.
_MAPPINGS = {
    "ForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "LMHeadModel": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "ForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "Model": "MODEL_MAPPING",
}


def __getattr__(name: str) -> type:
    """Build `Secateur<Family>Config`, `...Model`, `...ForCausalLM` and so on when asked for."""
    config = name.endswith("Config") and hasattr(transformers, name.removeprefix(PREFIX))
    stock = None if config or not name.startswith(PREFIX) else _stock_classes(name)
    if not name.startswith(PREFIX) or not (config or stock):
        missing = f"transformers {transformers.__version__} has no {name.removeprefix(PREFIX)}"
        about = f": {missing}, newer versions may" if name.startswith(PREFIX) else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{about}.")
    built = _config_class(name) if stock is None else _model_class(name, *stock)
    setattr(sys.modules[__name__], name, built)
    return built
