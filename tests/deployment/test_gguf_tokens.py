"""A tokenizer goes into a GGUF file if llama.cpp cuts text as it does."""

from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from secateur.deployment.gguf_tokens import BYTE, CONTROL, UNUSED, USER_DEFINED, vocabulary
from secateur.errors import SecateurError
from secateur.progress import telling


def byte_level(cuts: Any, **own: Any) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"</s>": 0, **{letter: n + 1 for n, letter in enumerate(letters)}}
    vocab |= {"he": len(vocab), "hel": len(vocab) + 1}
    backend = Tokenizer(models.BPE(vocab, [("h", "e"), ("he", "l")], **own))
    backend.pre_tokenizer = cuts
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_the_rule_that_cuts_text_has_a_name() -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    numbers = pre_tokenizers.Digits(individual_digits=True)
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), "isolated")
    found = vocabulary(byte_level(level), 300)
    assert (found.model, found.rule, found.merges) == ("gpt2", "gpt-2", ("h e", "he l"))
    assert found.kinds[0] == CONTROL
    assert found.kinds[299] == UNUSED
    assert len(set(found.tokens)) == 300
    both = pre_tokenizers.Sequence([numbers, level])
    assert vocabulary(byte_level(both), 300).rule == "smollm"
    both = pre_tokenizers.Sequence([split, bare])
    assert vocabulary(byte_level(both), 300).rule == "qwen2"
    for odd in (numbers, pre_tokenizers.Sequence([level, level]), split):
        with pytest.raises(SecateurError, match="--no-tokenizer"):
            vocabulary(byte_level(odd), 300)
    with pytest.raises(SecateurError, match="--no-tokenizer"):
        vocabulary(byte_level(level, ignore_merges=True), 300)
    three = pre_tokenizers.Split(Regex(words.replace(r"\p{N}|", r"\p{N}{1,3}|")), "isolated")
    both = pre_tokenizers.Sequence([three, bare])
    assert vocabulary(byte_level(both, ignore_merges=True), 300).rule == "llama-bpe"
    assert vocabulary(byte_level(both), 300).rule == "smaug-bpe"
    lower = byte_level(level)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(SecateurError, match="Lowercase"):
        vocabulary(lower, 300)
    with pytest.raises(SecateurError, match="byte-pair"):
        vocabulary(tiny_tokenizer(), 128)


def test_scores_merge_in_the_order_of_ranks() -> None:
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, "b": 3, "ab": 4, "\u2581ab": 5, "<0x41>": 6}
    merges = [("a", "b"), ("\u2581", "ab")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.add_tokens(["<more>"])
    found = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 9)
    assert found.model == "llama"
    assert found.space_before
    assert found.scores[4] > found.scores[5] > found.scores[2]
    assert found.kinds[6] == BYTE
    assert found.kinds[7] == USER_DEFINED
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(SecateurError, match="Lowercase"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 9)


def test_what_stands_around_a_text_is_that_which_begins_and_ends_one() -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = byte_level(level)
    found = vocabulary(tokenizer, 300)
    assert (found.begins, found.ends) == (False, False)
    post = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer.backend_tokenizer.post_processor = post
    found = vocabulary(tokenizer, 300)
    assert (found.begins, found.ends) == (False, True)
    post = processors.TemplateProcessing(single="hel $A", special_tokens=[("hel", 258)])
    tokenizer.backend_tokenizer.post_processor = post
    with pytest.raises(SecateurError, match="other tokens around"):
        vocabulary(tokenizer, 300)


def test_one_chat_template_is_written_and_what_is_left_out_is_told() -> None:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert vocabulary(tokenizer, 300).template is None
    tokenizer.chat_template = {"default": "{{ one }}", "tool_use": "{{ two }}"}
    tokenizer.add_tokens(["<far>"])
    with telling(None) as told:
        assert vocabulary(tokenizer, 259).template == "{{ one }}"
    assert any("several chat templates" in one for one in told.notes)
    assert any(one.startswith("1 added tokens are left out") for one in told.notes)


def test_added_tokens_that_take_spaces_are_told() -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = byte_level(level)
    with telling(None) as told:
        vocabulary(tokenizer, 300)
    assert not told.notes
    tokenizer.add_tokens([AddedToken("<|user|>", rstrip=True, special=True)])
    with telling(None) as told:
        vocabulary(tokenizer, 300)
    assert [note.startswith("1 added tokens take the spaces") for note in told.notes] == [True]
