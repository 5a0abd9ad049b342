"""A tokenizer as llama.cpp reads it: tokens, how text is cut before merges, and special tokens.

Of byte-level BPE (GPT-2's kind) the merges are written, and the name that llama.cpp has for the
rule that cuts text first. Of BPE over characters with bytes to fall back on (SentencePiece's kind)
the scores, by which llama.cpp merges: the lower a merge's rank, the higher.

Rules by name as in `llama_vocab::impl::load` of llama.cpp (llama-cpp-python 0.3.36).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SecateurError
from ..progress import note

# Kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What cuts text, as (kind, detail), to the rule's name; with merges that whole words skip, or not.
_RULES: dict[tuple[tuple[tuple[str, Any], ...], bool], str] = {
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    ((("Split", _WORDS % "{1,3}"), ("ByteLevel", False)), True): "llama-bpe",
    ((("Split", _WORDS % "{1,3}"), ("ByteLevel", False)), False): "smaug-bpe",
    ((("Split", _WORDS % ""), ("ByteLevel", False)), False): "qwen2",
}
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their kinds; `rule` cuts text before `merges`, or `scores` say what merges."""

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    special: Mapping[str, int]
    begins: bool
    ends: bool
    rule: str = ""
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_before: bool = False
    template: str | None = None


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """That of a fast tokenizer, filled up to the `rows` of the embedding.

    Raises:
        SecateurError: llama.cpp has no name for how it cuts text.
    """
    raw = _raw(tokenizer)
    model = raw["model"]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    kinds, tokens = _tokens(raw, rows)
    begins, ends = _around(tokenizer)
    own: dict[str, Any] = {
        "special": _special(tokenizer, rows),
        "begins": begins,
        "ends": ends,
        "template": _template(tokenizer),
    }
    if beyond := sum(added["id"] >= rows for added in raw["added_tokens"]):
        note(f"{beyond} added tokens are left out: the model has embeddings for {rows:,} tokens")
    if taking := sum(added["lstrip"] or added["rstrip"] for added in raw["added_tokens"]):
        note(f"{taking} added tokens take the spaces beside them; in llama.cpp those stay")
    if model.get("byte_fallback"):
        unknown = model["vocab"].get(model.get("unk_token"))
        for number, token in enumerate(tokens):
            if number == unknown:
                kinds[number] = UNKNOWN
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                kinds[number] = BYTE
        scores = _scores(tokens, merges)
        space = _space_before(raw)
        return Vocabulary(
            "llama", tuple(tokens), tuple(kinds), scores=scores, space_before=space, **own
        )
    for step in _flat(raw.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":  # of text that is in that form, as nearly all is, nothing changes
            raise _unnamed(f"it does {step['type']} to text")
    rule = _rule(raw["pre_tokenizer"], ignore=bool(model.get("ignore_merges")))
    return Vocabulary("gpt2", tuple(tokens), tuple(kinds), rule=rule, merges=tuple(merges), **own)


def _around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets the token that begins one, and the one that ends one.

    Raises:
        SecateurError: it gets others.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for begins in (False, True):
        for ends in (False, True):
            if [*begin * begins, *bare, *end * ends] == whole:
                return begins, ends
    raise _unnamed("it puts other tokens around a text than those that begin and end one")


def _template(tokenizer: Any) -> str | None:
    """The chat template; of several, the one by the name `default`."""
    found = tokenizer.chat_template
    if isinstance(found, Mapping):
        note("of several chat templates, the file has the one by the name default")
        found = found.get("default")
    return found if isinstance(found, str) else None


def _raw(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    raw: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = raw.get("model", {})
    if model.get("type") != "BPE":
        raise _unnamed("it is none of byte-pair encoding")
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        raise _unnamed("it marks the parts of words")
    return raw


def _unnamed(why: str) -> SecateurError:
    return SecateurError(
        f"llama.cpp has no name for how this tokenizer cuts text ({why}).\nWrite the model without"
        " one: --no-tokenizer"
    )


def _tokens(raw: Mapping[str, Any], rows: int) -> tuple[list[int], list[str]]:
    """The kind and the text of each token; rows without one are filled up with unused ones."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [UNUSED] * rows
    for text, number in raw["model"]["vocab"].items():
        if number < rows:
            tokens[number], kinds[number] = text, NORMAL
    for added in raw["added_tokens"]:
        if (number := added["id"]) < rows:
            tokens[number] = added["content"]
            kinds[number] = CONTROL if added["special"] else USER_DEFINED
    return kinds, tokens


def _special(tokenizer: Any, rows: int) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {long: getattr(tokenizer, f"{short}_token_id") for short, long in names.items()}
    return {name: number for name, number in found.items() if number is not None and number < rows}


def _scores(tokens: list[str], merges: list[str]) -> tuple[float, ...]:
    """By the rank of the first merge that makes a token; of those that none makes, last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ")), rank)
    return tuple(float(-ranks.get(token, len(merges))) for token in tokens)


def _space_before(raw: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before its first word.

    Raises:
        SecateurError: something else is done to the text.
    """
    before = replaced = False
    for step in _flat(raw.get("normalizer"), "normalizers"):
        replaces = step["type"] == "Replace" and step["pattern"] == {"String": " "}
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            before = True
        elif replaces and step["content"] == _SPACE:
            replaced = True
        else:
            raise _unnamed(f"it does {step['type']} to text")
    for step in _flat(raw.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("prepend_scheme") in ("always", "never"):
            before, replaced = before or step["prepend_scheme"] == "always", True
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:
            raise _unnamed(f"it does {step['type']} to text")
    if not replaced:
        raise _unnamed("it leaves spaces as they are")
    return before


def _rule(cuts: Any, *, ignore: bool) -> str:
    """The name of the rule that cuts text.

    Raises:
        SecateurError: there is none.
    """
    steps = tuple(_step(one) for one in _flat(cuts, "pretokenizers"))
    found = _RULES.get((steps, ignore))
    if found is None:
        raise _unnamed(", then ".join(kind for kind, _ in steps) or "it has no rule")
    return found


def _flat(step: Any, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return step[inner] if step["type"] == "Sequence" else [step]


def _step(step: Mapping[str, Any]) -> tuple[str, Any]:
    kind = str(step["type"])
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, bool(step.get("use_regex", True))
    if kind == "Digits":
        return kind, bool(step.get("individual_digits"))
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return kind, step["pattern"].get("Regex")
    return kind, None
