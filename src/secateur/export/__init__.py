"""Writing a pruned model so that transformers and other engines load it."""

from .card import model_card, recovery_card
from .few_bits import packed_form
from .form import Form, pruned_form
from .proof import prove, proved
from .write import copy_companions, write_model

__all__ = [
    "Form",
    "copy_companions",
    "model_card",
    "packed_form",
    "prove",
    "proved",
    "pruned_form",
    "recovery_card",
    "write_model",
]
