"""Train the small Llama that ships with secateur, from text every Python installation carries.

The package wants one real language model that the demo and the tests can prune without a
download: grouped-query attention, tied embeddings, at most six million bytes of weights. This
script makes it from nothing but the standard library's own English (the ``pydoc`` topics and the
docstrings), writes the calibration and held-out texts beside it, and writes the model card from
the numbers it measured. Run it as::

    python scripts/train_embedded.py --out src/secateur/embedded
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import math
import platform
import re
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
SPLITS = ("train", "validation", "heldout")
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "encodings"}
)
SPLIT_SALT = "secateur"
TRAIN_SHARE, VALIDATION_SHARE = 0.91, 0.03
SHORTEST_DOCSTRING, SHORTEST_DOCUMENT = 30, 200
CALIBRATION_BYTES, CALIBRATION_DOCUMENT_BYTES = 250_000, 8_000
WEIGHT_LIMIT_BYTES = 6_000_000
PROMPT = "The for statement is used to"


@dataclass(frozen=True)
class Document:
    """One pydoc topic, or the docstrings of one module; the name alone decides its split."""

    name: str
    text: str


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the text; the defaults are as shipped."""

    vocabulary: int = 2048
    hidden: int = 192
    layers: int = 6
    intermediate: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 24
    context: int = 512
    batch_tokens: int = 1024
    short_share: float = 0.75
    steps: int = 4400
    warmup: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.3
    dropout: float = 0.1
    ema: float = 0.995
    evaluate_every: int = 200
    patience: int = 1200
    seed: int = 20
    threads: int = 2


@dataclass(frozen=True)
class TrainingResult:
    """What the training loop learned about itself, for the card."""

    best_step: int
    steps: int
    tokens: int
    epochs: float
    validation_loss: float
    seconds: float


# ---------------------------------------------------------------------------------------- text


def collect_topics() -> list[Document]:
    """Return the ``pydoc`` help topics: the language reference in prose."""
    return [Document(f"topic:{name}", inspect.cleandoc(text)) for name, text in topics.items()]


def docstrings(node: ast.AST) -> Iterator[str]:
    """Yield docstrings in source order, so that a module reads from its top to its end."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text and len(cleaned := inspect.cleandoc(text)) >= SHORTEST_DOCSTRING:
            yield cleaned
    for child in ast.iter_child_nodes(node):
        yield from docstrings(child)


def is_wanted(parts: tuple[str, ...]) -> bool:
    """Leave out tests, tables and folders that differ from one installation to the next."""
    return not SKIPPED_FOLDERS.intersection(parts) and not parts[0].startswith("config-")


def collect_modules() -> list[Document]:
    """Return one document of docstrings for each module of the standard library.

    The sources are parsed, never imported: importing some of them has effects.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not is_wanted(parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences in old modules
            tree = ast.parse(path.read_bytes())
        documents.append(Document("module:" + ".".join(parts), "\n\n".join(docstrings(tree))))
    return documents


def name_hash(name: str) -> float:
    """Map a document's name to [0, 1), the same on every machine and Python version."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(name: str) -> str:
    """Choose the split by name, so that another Python version keeps documents where they are."""
    place = name_hash(name)
    if place < TRAIN_SHARE:
        return "train"
    return "validation" if place < TRAIN_SHARE + VALIDATION_SHARE else "heldout"


def without_seen_paragraphs(document: Document, seen: set[str]) -> Document:
    """Drop paragraphs that already stand somewhere, however they are wrapped or indented."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", document.text):
        key = " ".join(paragraph.split())
        if key and key not in seen:
            seen.add(key)
            kept.append(paragraph.rstrip())
    return Document(document.name, "\n\n".join(kept).strip("\n"))


def split_documents(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Split and deduplicate; training goes first, so a shared paragraph never stays held out."""
    ordered = sorted(documents, key=lambda document: document.name)
    seen: set[str] = set()
    splits: dict[str, list[Document]] = {}
    for split in SPLITS:
        members = (document for document in ordered if split_of(document.name) == split)
        unique = (without_seen_paragraphs(document, seen) for document in members)
        splits[split] = [document for document in unique if len(document.text) >= SHORTEST_DOCUMENT]
    return splits


def joined(documents: Iterable[Document]) -> str:
    """Join documents with blank lines, the form in which the text files are shipped."""
    return "\n\n".join(document.text for document in documents) + "\n"


def calibration_text(documents: Iterable[Document]) -> str:
    """Take the head of many training documents, so that no single module fills the file."""
    pieces: list[str] = []
    total = 0
    for document in sorted(documents, key=lambda document: name_hash(document.name)):
        piece = document.text.encode()[:CALIBRATION_DOCUMENT_BYTES].decode(errors="ignore")
        if len(piece) < len(document.text):
            piece = piece.rpartition("\n\n")[0] or piece
        if total >= CALIBRATION_BYTES:
            break
        pieces.append(piece)
        total += len(piece.encode()) + 2
    return "\n\n".join(pieces) + "\n"


# ----------------------------------------------------------------------------------- tokenizer


def train_tokenizer(documents: Iterable[Document], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that prepends ``<s>`` as Llama does, and can spell any text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator((document.text for document in documents), trainer)
    bos, eos, pad = SPECIAL_TOKENS
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokenise without special tokens and without the length warning: windows are cut later."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def packed_stream(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> torch.Tensor:
    """Lay the documents end to end, each between ``<s>`` and ``</s>``."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    stream = [i for d in documents for i in (bos, *encode(tokenizer, d.text), eos)]
    return torch.tensor(stream, dtype=torch.long)


# ------------------------------------------------------------------------------------ training


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """Build the untrained model: tied embeddings and grouped-query attention."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def add_residual_dropout(model: LlamaForCausalLM, probability: float) -> None:
    """Drop parts of what each block adds, in training only.

    Llama has no such dropout of its own, and a few hundred thousand tokens read many times over
    need one; a hook leaves no trace in the configuration or the saved weights.
    """

    def hook(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output, probability, training=module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(hook)


def batches(stream: torch.Tensor, window: int, batch_tokens: int) -> Iterator[torch.Tensor]:
    """Yield shuffled windows for ever; each pass cuts the stream at a new random offset.

    Cutting rather than drawing positions shows every token equally often, and the moving offset
    keeps the windows from being the same ones each time.
    """
    count = batch_tokens // window
    while True:
        offset = int(torch.randint(window, ()))
        windows = stream[offset:].unfold(0, window + 1, window)
        order = torch.randperm(len(windows))
        for chosen in order[: len(order) // count * count].view(-1, count):
            yield windows[chosen]


def batch_source(stream: torch.Tensor, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Yield one batch a step: half windows first, because attention over them costs half as much.

    Most of what is to be learned is local; the whole window is for the last part of the run.
    """
    short = batches(stream, recipe.context // 2, recipe.batch_tokens)
    whole = batches(stream, recipe.context, recipe.batch_tokens)
    for step in range(recipe.steps):
        yield next(short if step < recipe.short_share * recipe.steps else whole)


def rate_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate: linear warm-up, then a cosine down to a fiftieth."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Decay the matrices only: pulling the norms' gains towards zero helps nobody."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def next_token_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of every token of a window after its first."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def mean_nll(model: LlamaForCausalLM, ids: torch.Tensor, window: int, batch: int = 16) -> float:
    """Return the mean loss over non-overlapping windows, each predicting window - 1 tokens."""
    model.eval()
    windows = ids[: len(ids) // window * window].view(-1, window)
    total = sum(float(next_token_loss(model, part)) * len(part) for part in windows.split(batch))
    return total / len(windows)


def update(
    model: LlamaForCausalLM, optimizer: torch.optim.AdamW, windows: torch.Tensor, rate: float
) -> float:
    """Take one optimiser step, with clipped gradients, and return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    loss = next_token_loss(model, windows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def follow(average: LlamaForCausalLM, model: LlamaForCausalLM, decay: float) -> None:
    """Move the averaged weights towards the trained ones."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, validation: torch.Tensor, recipe: Recipe
) -> TrainingResult:
    """Train in place; leave the moving average of the weights that validated best."""
    average = build_model(recipe)
    average.load_state_dict(model.state_dict())
    add_residual_dropout(model, recipe.dropout)
    optimizer = build_optimizer(model, recipe)
    best, best_step, best_state = math.inf, 0, model.state_dict()
    running, step = math.nan, 0
    start = time.perf_counter()
    for step, windows in enumerate(batch_source(stream, recipe), start=1):
        rate = rate_at(step - 1, recipe)
        loss = update(model, optimizer, windows, rate)
        running = loss if step == 1 else 0.98 * running + 0.02 * loss
        # The average follows closely while little is learned, and slowly later.
        follow(average, model, min(recipe.ema, step / (step + 10)))
        if step % recipe.evaluate_every and step != recipe.steps:
            continue
        score = mean_nll(average, validation, recipe.context)
        if score < best:
            best, best_step = score, step
            best_state = {k: v.clone() for k, v in average.state_dict().items()}
        elapsed = time.perf_counter() - start
        print(
            f"step {step:5d}/{recipe.steps}  loss {running:.3f}  validation {score:.4f}"
            f"{' *' if best_step == step else '  '}  lr {rate:.1e}"
            f"  {step * recipe.batch_tokens / elapsed:7,.0f} tokens/s"
            f"  ETA {elapsed / step * (recipe.steps - step) / 60:4.1f} min",
            flush=True,
        )
        if step - best_step >= recipe.patience:
            break
    model.load_state_dict(best_state)
    tokens = step * recipe.batch_tokens
    seconds = time.perf_counter() - start
    return TrainingResult(best_step, step, tokens, tokens / len(stream), best, seconds)


# -------------------------------------------------------------------------------- measurements


def repeated_share(heldout: str, training: str, shortest: int = 40) -> float:
    """Return the share of held-out text in long lines that also stand in training, word for word.

    Paragraphs are deduplicated exactly; this says how much slips through in shorter pieces.
    """
    seen = {line.strip() for line in training.splitlines()}
    lines = [line.strip() for line in heldout.splitlines() if len(line.strip()) >= shortest]
    return sum(len(line) for line in lines if line in seen) / sum(map(len, lines))


def measure(folder: Path) -> dict[str, float]:
    """Measure the saved folder as a user would find it: reloaded, weights widened to float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = (folder / "heldout.txt").read_text(encoding="utf-8")
    ids = torch.tensor(encode(tokenizer, text))
    size = len(text.encode())
    numbers: dict[str, float] = {"tokens": len(ids), "bytes": size}
    for window in (128, 512):
        nll = mean_nll(model, ids, window)
        numbers[f"perplexity_{window}"] = math.exp(nll)
        numbers[f"bits_per_byte_{window}"] = nll / math.log(2) * len(ids) / size
    return numbers


def continuation(folder: Path, tokens: int = 60) -> str:
    """Return what the saved model writes greedily after a fixed prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


# ----------------------------------------------------------------------------------- artefacts


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save weights in bfloat16, and a tokenizer whose class name old and new releases know."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def license_text() -> str:
    """Return the PSF licence as this Python carries it, or its short notice where it does not."""
    notice = (
        "heldout.txt and calibration.txt are taken from the Python documentation and standard\n"
        "library; the model and its tokenizer were trained on such text.\n"
        "Changes made: help topics and docstrings were extracted, repeated paragraphs dropped.\n\n"
        "Copyright (c) 2001 Python Software Foundation; All Rights Reserved\n"
        "https://docs.python.org/3/license.html\n"
    )
    path = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if not path.is_file():
        return notice
    whole = path.read_text(encoding="utf-8")
    pattern = r"^PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n-+\n.*?(?=^BEOPEN\.COM)"
    found = re.search(pattern, whole, flags=re.DOTALL | re.MULTILINE)
    return f"{notice}\n\n{found.group().rstrip()}\n" if found else notice


def split_table(splits: dict[str, list[Document]]) -> str:
    """Return the rows that say how much text each split holds, and of which kind."""
    rows = []
    for split, documents in splits.items():
        topical = [document for document in documents if document.name.startswith("topic:")]
        size = len(joined(documents).encode())
        share = len(joined(topical).encode()) / size
        rows.append(f"| {split} | {len(documents)} | {len(topical)} | {size:,} | {share:.0%} |")
    return "\n".join(rows)


def card(
    folder: Path,
    splits: dict[str, list[Document]],
    recipe: Recipe,
    result: TrainingResult,
    parameters: int,
    seconds: float,
) -> str:
    """Write the model card; every number in it was measured in this run."""
    held = measure(folder)
    repeated = repeated_share(joined(splits["heldout"]), joined(splits["train"]))
    size = (folder / "model.safetensors").stat().st_size
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(recipe).items())
    calibration = (folder / "calibration.txt").stat().st_size
    trained, total = result.seconds / 60, seconds / 60
    torch_version = torch.__version__.split("+")[0]
    hf_version, bpe_version = transformers.__version__, tokenizers.__version__
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded model

A toy Llama for secateur's demo and tests: a real, trained language model that is always there,
so that pruning can be tried and checked without a download. It knows the look of Python's
documentation and little else. Do not use it for anything but tests and demonstrations.

## Numbers

| | |
|---|---|
| parameters (embedding counted once) | {parameters:,} |
| `model.safetensors` (bfloat16) | {size:,} bytes |
| held-out perplexity per token, windows of 128 | {held["perplexity_128"]:.2f} |
| held-out perplexity per token, windows of 512 | {held["perplexity_512"]:.2f} |
| held-out bits per byte, windows of 128 | {held["bits_per_byte_128"]:.3f} |
| held-out bits per byte, windows of 512 | {held["bits_per_byte_512"]:.3f} |
| held-out text | {held["bytes"]:,} bytes, {held["tokens"]:,} tokens |
| validation loss of the kept weights (step {result.best_step:,}) | {result.validation_loss:.4f} |

Protocol: `heldout.txt` is tokenised once without special tokens and cut into windows that do not
overlap; perplexity is exp(total loss / predicted tokens) over the window - 1 predicted tokens of
each window, the tail dropped. The model is reloaded from this folder and computed in float32.

## Training

- {result.steps:,} steps, {result.tokens:,} tokens seen: {result.epochs:.1f} passes over the
  training text, in windows of half of `context` for the first `short_share` of the steps;
- {trained:.1f} minutes of training, {total:.1f} in all, on {recipe.threads} CPU cores;
  seed {recipe.seed};
- AdamW in float32, linear warm-up then cosine, gradients clipped at 1.0, dropout on the
  embedding and on what each block adds;
- the shipped weights are the moving average that validated best.

To train it again:

    python scripts/train_embedded.py --out src/secateur/embedded

| setting | value |
|---|---|
{settings}

The text is that of Python {platform.python_version()}; trained with torch {torch_version},
transformers {hf_version} and tokenizers {bpe_version}. Another version of any of them, or
another processor, gives slightly different weights.

## Data

The help topics of `pydoc` and the docstrings of the standard library, one document for each topic
and each module. The split is decided by a hash of the document's name; paragraphs are
deduplicated, whatever their wrapping, across all of it, training first, so that no held-out
paragraph stands in training. Of the held-out text in lines of 40 characters or more, {repeated:.1%}
still stands line for line somewhere in training. Validation chose the settings and the step that
was kept; the held-out text was used for the numbers above only.

| split | documents | of them topics | bytes | text from topics |
|---|---|---|---|---|
{split_table(splits)}

`calibration.txt` ({calibration:,} bytes) is training text, the head of many documents;
`heldout.txt` is the held-out split. Documents are separated by blank lines.

## Sample

Greedy, 60 tokens, from "{PROMPT}":

```text
{continuation(folder)}
```

## Licence

Weights and tokenizer: Apache-2.0. The texts come from the Python documentation and standard
library, under the PSF License Version 2 (`LICENSE-PYTHON.txt`), copyright Python Software
Foundation; some modules of the standard library carry notices of their own.
"""


# ---------------------------------------------------------------------------------------- main


def parse_arguments() -> tuple[Path, Recipe]:
    """Read the output folder and the recipe, one option for each of its fields."""
    parser = argparse.ArgumentParser(
        description="Train the model embedded in secateur.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    for field in fields(Recipe):
        option, default = "--" + field.name.replace("_", "-"), field.default
        parser.add_argument(option, type=type(default), default=default, help=" ")
    values = vars(parser.parse_args())
    return values.pop("out"), Recipe(**values)


def main() -> None:
    """Collect, split, train, save, measure, and write the card."""
    start = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    folder, recipe = parse_arguments()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    model = build_model(recipe)
    parameters = sum(p.numel() for p in model.parameters())
    if 2 * parameters > WEIGHT_LIMIT_BYTES - 20_000:  # the header needs its place as well
        raise SystemExit(f"{parameters:,} parameters do not fit {WEIGHT_LIMIT_BYTES:,} bytes")

    splits = split_documents(collect_topics() + collect_modules())
    tokenizer = train_tokenizer(splits["train"], recipe)
    stream = packed_stream(tokenizer, splits["train"])
    validation = torch.tensor(encode(tokenizer, joined(splits["validation"])))
    print(f"{parameters:,} parameters, {len(stream):,} training tokens, seed {recipe.seed}")
    result = train(model, stream, validation, recipe)

    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer)
    texts = {
        "heldout.txt": joined(splits["heldout"]),
        "calibration.txt": calibration_text(splits["train"]),
        "LICENSE-PYTHON.txt": license_text(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    seconds = time.perf_counter() - start
    text = card(folder, splits, recipe, result, parameters, seconds)
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
    print(text)


if __name__ == "__main__":
    main()
