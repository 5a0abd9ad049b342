"""Writing a pruned model as a checkpoint folder that loads."""

from .card import model_card
from .form import Form, pruned_form
from .write import copy_companions, write_model

__all__ = ["Form", "copy_companions", "model_card", "pruned_form", "write_model"]
