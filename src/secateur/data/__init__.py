"""Calibration and evaluation text, and the token windows cut from it."""

from .examples import (
    IGNORED,
    INSTRUCTION_SETS,
    Examples,
    instruction_examples,
    is_instructions,
)
from .generated import generated_documents
from .given import GIVEN, given_windows, is_given
from .sources import EMBEDDED, HUB_SETS, HubSet, check_source, documents, evaluated_part
from .tokens import Beginning, Bos, beginning
from .windows import (
    CHOICE,
    Text,
    Windows,
    cut,
    running_text,
    sample_windows,
    token_hash,
)
