"""What kind of thing a MODEL is besides a plain checkpoint, and how each kind is read as one."""

from .adapter import adapter_in, base_of, merged_view
from .gguf import Gguf, gguf_file
from .live import check_live, holds_floats
from .multimodal import Outer, is_multimodal, outer_of
from .quantised import dequantised, scheme_of, without_quantisation
from .tokenizers import has_tokenizer, tokenizer_of
