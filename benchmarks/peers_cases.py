"""What is compared with the public code of FLAP and LLM-Pruner, and what that runs on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peer:
    """Public code: where it is, and which of its files are run."""

    folder: str
    source: str
    commit: str
    files: tuple[str, ...]
    goal: float


PEERS = {
    "flap": Peer(
        "FLAP",
        "https://github.com/CASIA-IVA-Lab/FLAP",
        "3bb57db3449dd2fa04a5c2192de80e87e33be2b1",
        ("lib", "models"),
        5.0,
    ),
    "llm-pruner": Peer(
        "LLM-Pruner",
        "https://github.com/horseee/LLM-Pruner",
        "128a07d977f9b205d60ab14cfbc6a78f8a8e39d2",
        ("hf_prune.py", "LLMPruner"),
        3.0,
    ),
}
# What the peers run on, beside the torch that we run on. Their time had no other than these.
REQUIREMENTS = {
    "transformers": "4.28.1",
    "tokenizers": "0.13.3",
    "accelerate": "0.18.0",
    "numpy": "1.26.4",
    "safetensors": "0.8.0",
    "sentencepiece": "0.2.3",
    "setuptools": "80.9.0",
}
# 110.5 million parameters. FLAP's code knows heads of 128 alone, LLM-Pruner's uses token 29892.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
}
SEED = 0
# The middle layers: LLM-Pruner's 4 to 29 of 32.
LAYERS = (1, 7)


@dataclasses.dataclass(frozen=True)
class Case:
    """A comparison. `dtype` is what a peer computes in; ours does in that of the checkpoint.

    `plain` is whether the model's own passes over the windows are timed beside it.
    """

    name: str
    method: str
    samples: int
    length: int
    checkpoint: str = "float32"
    dtype: str = "float32"
    terms: str = "param_first"
    plain: bool = False

    @property
    def alike(self) -> bool:
        """Whether both sides compute in the same dtype."""
        return self.checkpoint == self.dtype

    @property
    def sides(self) -> tuple[str, ...]:
        """What runs in a turn, in order."""
        return (self.method, "ours", *(("plain",) if self.plain else ()))


CASES = (
    Case("FLAP fp32, 64 x 128", "flap", 64, 128, plain=True),
    Case("FLAP bf16, 64 x 128", "flap", 64, 128, "bfloat16", "bfloat16", plain=True),
    Case("LLM-Pruner param_first fp32, 10 x 64", "llm-pruner", 10, 64, plain=True),
    Case("LLM-Pruner param_mix fp32, 10 x 64", "llm-pruner", 10, 64, terms="param_mix"),
    Case("LLM-Pruner vectorize fp32, 10 x 64", "llm-pruner", 10, 64, terms="vectorize"),
    Case("LLM-Pruner param_first fp32, 24 x 128", "llm-pruner", 24, 128, plain=True),
    Case("as they come: FLAP fp16, ours bf16, 16 x 128", "flap", 16, 128, "bfloat16", "float16"),
    Case("as they come: LLM-Pruner fp32, ours bf16, 24 x 128", "llm-pruner", 24, 128, "bfloat16"),
)
