"""Writing a pruned model so that transformers and other engines load it."""

from .card import model_card
from .form import Form, pruned_form
from .proof import prove
from .write import copy_companions, write_model

__all__ = ["Form", "copy_companions", "model_card", "prove", "pruned_form", "write_model"]
