"""After `import secateur`, transformers' Auto classes load pruned folders without a flag."""

from collections.abc import Mapping
from typing import Any

from .. import modeling_secateur
from ..modeling_secateur import PREFIX, own_name
from .families import FAMILIES


def auto_classes(config: str, model: str) -> dict[str, str]:
    """The classes of pruned models for one stock config, by the Auto class that finds them.

    `config` and `model` name the stock config and the stock (or pruned) causal model.
    """
    import transformers

    stock = getattr(transformers, config)
    found = {"AutoModelForCausalLM": own_name(config, model)}
    for auto in ("AutoModel", "AutoModelForSequenceClassification"):
        mapping = getattr(transformers, auto)._model_mapping
        name = mapping[stock].__name__ if stock in mapping else ""
        if hasattr(transformers, name):
            found[auto] = own_name(config, name)
    return found


def register() -> None:
    """Make transformers' Auto classes know the pruned form of every family."""
    for layouts in FAMILIES.values():
        register_classes(layouts[0].config, layouts[0].model)


def register_classes(config: str, model: str) -> None:
    """Make them know the pruned form of the stock classes with these names."""
    import transformers

    config_class = getattr(modeling_secateur, PREFIX + config)
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto, name in auto_classes(config, model).items():
        model_class = getattr(modeling_secateur, name)
        getattr(transformers, auto).register(config_class, model_class, exist_ok=True)


def register_form(raw: Mapping[str, Any]) -> None:
    """The same for the pruned form that a config.json names, of a family that nobody declared."""
    names = [str(name) for name in raw.get("architectures") or []]
    config = str((raw.get("auto_map") or {}).get("AutoConfig", "")).rpartition(".")[2]
    if str(raw.get("model_type")).startswith("secateur_") and names and config:
        try:
            register_classes(config.removeprefix(PREFIX), names[0])
        except AttributeError:  # no such stock class: the config's reader says what is wrong
            return
