"""After `import secateur`, transformers' Auto classes load pruned folders without a flag."""

from .. import modeling_secateur
from .families import FAMILIES


def register() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know the pruned form of every family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for family in (family for layouts in FAMILIES.values() for family in layouts[:1]):
        config = getattr(modeling_secateur, modeling_secateur.PREFIX + family.config)
        model = getattr(modeling_secateur, modeling_secateur.PREFIX + family.model)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
