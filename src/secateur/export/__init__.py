"""Writing a pruned model so that transformers and other engines load it."""

from .around import WholeForm, with_around
from .card import conversion_card, model_card, recovery_card
from .companions import copy_companions
from .exporters import EXPORTERS, exporter
from .few_bits import packed_form
from .form import Form, pruned_form, whole_form
from .front_matter import earlier_card, licence_files
from .markdown import without_place, without_places
from .model_index import model_index
from .proof import prove, proved
from .write import write_model
