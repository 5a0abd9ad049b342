"""Writing a pruned model so that transformers and other engines load it."""

from .around import WholeForm, with_around
from .card import model_card, recovery_card
from .few_bits import packed_form
from .form import Form, pruned_form
from .proof import prove
from .write import copy_companions, write_model

__all__ = [
    "Form",
    "WholeForm",
    "copy_companions",
    "model_card",
    "packed_form",
    "prove",
    "pruned_form",
    "recovery_card",
    "with_around",
    "write_model",
]
