"""Memory of large tensors in pages of 2 MiB, where the kernel gives them to those who ask.

What a tensor is written into is handed out page by page. A layer's activations, or logits over a
large vocabulary, are hundreds of thousands of pages of 4 KiB, each time anew, and handing them out
takes as long as computing what is in them. Results are the same. torch reads the variable when it
is imported; whoever wants something else sets it: THP_MEM_ALLOC_ENABLE=0.
"""

import os


def ask_for_large_pages() -> None:
    """Let torch ask for large pages, unless THP_MEM_ALLOC_ENABLE is set."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
