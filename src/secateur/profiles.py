"""Profiles: what the engine that is to run the model asks of a plan, by name.

A profile is put into settings that every search obeys (`pipeline.profiled`), so that the plan is
the best one that the engine can run, and not one that is bent afterwards.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """`stock`: one width for all layers, as the family's own class has it. `row`: MLP widths are
    multiples of it. `gguf`: what llama.cpp holds of the family.
    """

    summary: str
    stock: bool = False
    row: int = 1
    gguf: bool = False


FREE = "free"
PROFILES = {
    FREE: Profile("Every layer its own widths: transformers, ONNX, llama.cpp for a Llama's kin."),
    "uniform": Profile(
        "One width for all layers, a stock checkpoint: what any engine takes.", True
    ),
    "gguf": Profile(
        "What llama.cpp holds, MLPs in rows of 32 for its quantised types.", False, 32, True
    ),
    "vllm": Profile("A stock checkpoint with MLP widths of 64, for vLLM and SGLang.", True, 64),
}
