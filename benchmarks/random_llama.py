"""A Llama of random weights in any size, written one layer at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; what is 0 follows from `hidden`."""

    layers: int = 32
    hidden: int = 4096
    mlp: int = 0
    heads: int = 0
    kv_heads: int = 0
    vocabulary: int = 128_256

    def filled(self) -> "Shape":
        """With the proportions of 8B where nothing is said."""
        heads = self.heads or max(self.hidden // 128, 4)
        return replace(
            self,
            mlp=self.mlp or self.hidden * 7 // 2,
            heads=heads,
            kv_heads=self.kv_heads or max(heads // 4, 2),
        )

    @property
    def layer(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a layer."""
        size = self.hidden // self.heads
        queries, keys = self.heads * size, self.kv_heads * size
        return {
            "self_attn.q_proj.weight": (queries, self.hidden),
            "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.weight": (keys, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, queries),
            "mlp.gate_proj.weight": (self.mlp, self.hidden),
            "mlp.up_proj.weight": (self.mlp, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.mlp),
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
        }

    @property
    def linears(self) -> int:
        """Weights of all layers' linears."""
        shapes = (shape for shape in self.layer.values() if len(shape) == 2)
        return self.layers * sum(rows * columns for rows, columns in shapes)

    @property
    def consumers(self) -> int:
        """Those of them that are consumers'."""
        queries = self.layer["self_attn.o_proj.weight"][1]
        return self.layers * self.hidden * (queries + self.mlp)

    @property
    def bytes(self) -> int:
        """Of the whole model in bf16."""
        return 2 * (self.linears + 2 * self.vocabulary * self.hidden)

    def forward(self, tokens: Tensor, *, head: bool) -> float:
        """Operations of a forward over windows [window, token]; a token sees those before it."""
        weights = self.linears + (self.vocabulary * self.hidden if head else 0)
        attention = 2 * self.layers * self.hidden * tokens.shape[1]
        return float(tokens.numel() * (2 * weights + attention))

    def normal(self, tokens: Tensor) -> float:
        """Operations of the normal matrices of the consumers' inputs."""
        return float(tokens.numel() * self.layers * 2 * (self.hidden**2 + self.mlp**2))


def write_model(folder: Path, shape: Shape, device: torch.device) -> None:
    """Write a random model, one shard a layer: never more than that is in memory."""
    known = json.dumps(vars(shape))
    if (folder / "shape.json").is_file() and (folder / "shape.json").read_text() == known:
        return
    if folder.exists():
        raise SystemExit(f"{folder} holds another model, or half of one: choose another --work.")
    folder.mkdir(parents=True)
    config = transformers.LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    generator = torch.Generator(device).manual_seed(0)
    listed: dict[str, str] = {}
    for number, shapes in enumerate(_shards(shape)):
        name = f"model-{number:05}.safetensors"
        tensors = {key: _random(size, generator) for key, size in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        listed |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": shape.bytes}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "shape.json").write_text(known)


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each file."""
    yield {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        yield {f"model.layers.{layer}.{name}": size for name, size in shape.layer.items()}
    yield {
        "model.norm.weight": (shape.hidden,),
        "lm_head.weight": (shape.vocabulary, shape.hidden),
    }


def _random(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    spread_out = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    return spread_out.normal_(0, 0.02, generator=generator).cpu()
