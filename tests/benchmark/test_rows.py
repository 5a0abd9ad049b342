"""Rows, types that fall back, and sizes of files: against the gguf package and real files."""

import math
from pathlib import Path

import pytest
import transformers
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from conftest import QUICK, tiny_model
from secateur.benchmark import MIXTURES, aligned_shapes, file_size, mlp_axes, multiples, rows_of
from secateur.benchmark.gguf import more_bits, wanted_types
from secateur.benchmark.rows import Rows, aligned
from secateur.gguf_types import BLOCKS, FALLBACK, stored_bytes, stored_type
from secateur.models import OpenModel, open_config, open_model
from secateur.pipeline.benchmarking import name_in


def rows_in(opened: OpenModel) -> list[Rows]:
    names = (name_in(opened.skeleton, which) for which in ("input", "output"))
    return rows_of(opened.structures, shapes_in(opened), *names)


def shapes_in(opened: OpenModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(spec.shape) for name, spec in opened.weights.specs.items()}


def test_blocks_are_those_of_the_gguf_package() -> None:
    sizes = {kind.name: size for kind, size in GGML_QUANT_SIZES.items()}
    assert all(sizes[kind] == block for kind, block in BLOCKS.items())
    for kind in BLOCKS:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        assert stored_bytes(kind, 2 * block, 3) == 6 * size


def test_what_falls_back_takes_the_row_and_no_fewer_bits() -> None:
    for kind in BLOCKS:
        for row in (31, 32, 96, 256, 288):
            found = stored_type(kind, row)
            if found is None:
                assert kind not in FALLBACK
                continue
            (block, size), (wanted, bits) = BLOCKS[found], BLOCKS[kind]
            assert row % block == 0
            assert size / block >= bits / wanted
            assert found == kind or row % wanted
    assert stored_type("Q4_K", 288) == "Q5_0"
    assert stored_type("Q4_K", 1128) == "F16"
    assert stored_type("Q4_0", 1128) is None


def smollm(folder: Path, width: int) -> list[Rows]:
    """SmolLM2-135M by its sizes alone."""
    transformers.LlamaConfig(
        hidden_size=576, intermediate_size=width, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip
    return rows_in(open_config(folder))


@pytest.mark.parametrize(("width", "measured"), [(1536, 105.5), (1128, 117.2), (1120, 94.1)])
def test_estimates_are_those_of_files_that_llama_cpp_wrote(
    width: int, measured: float, tmp_path: Path
) -> None:
    """Dense; a fifth of the linears gone at --align 8 and at 32. The tokenizer is 1.8 MB."""
    size = file_size(smollm(tmp_path, width), MIXTURES["Q4_K_M"]).bytes
    assert size is not None
    assert 0 < measured - size / 1e6 < 2.5


@pytest.mark.parametrize("variant", [*QUICK, "mixtral", "llama-tied"])
def test_rows_are_all_of_the_model(variant: str) -> None:
    opened = open_model(tiny_model(variant))
    shapes, rows = shapes_in(opened), rows_in(opened)
    assert [one.tensor for one in rows] == list(shapes)
    assert all(one.row * one.rows == math.prod(shapes[one.tensor]) for one in rows)
    parts = [one.part for one in rows]
    assert parts.count("head") == 1
    assert parts.count("output") == parts.count("down") == 3
    assert parts.count("value") == 3
    size = file_size(rows, MIXTURES["F16"]).bytes
    kept = sum(one.row * one.rows for one in rows if one.part == "kept")
    assert size == 2 * (sum(math.prod(shape) for shape in shapes.values()) + kept)


def test_a_third_of_layers_and_the_ends_get_more_bits() -> None:
    found = [more_bits(layer, 32) for layer in range(32)]
    assert found[:4] == found[28:] == [True] * 4
    assert sum(found[4:28]) == 8
    rows = rows_in(open_model(tiny_model("llama-gqa", num_hidden_layers=8)))
    wanted = [kind for one, kind in wanted_types(rows, MIXTURES["Q4_K_M"]) if one.part == "down"]
    assert wanted == ["Q6_K" if more_bits(layer, 8) else "Q4_K" for layer in range(8)]


def test_aligned_widths_are_multiples_of_about_the_same_total() -> None:
    for widths in ([100, 300, 700, 20], [256] * 4, [7], [33, 31, 65]):
        for align in (8, 32, 256):
            found = aligned(widths, align)
            assert all(width % align == 0 and width > 0 for width in found)
            forced = sum(width < align for width in widths)
            assert abs(sum(found) - sum(widths)) <= align * (0.5 + forced)
            assert aligned(found, align) == found


@pytest.mark.parametrize("variant", ["llama-gqa", "phi3", "gpt2", "mixtral", "gpt_oss"])
def test_aligned_shapes_are_those_of_a_model_of_these_widths(variant: str) -> None:
    """Fused or not, of experts or not, transposed or not."""
    opened = open_model(tiny_model(variant))
    structure, shapes = opened.structures, shapes_in(opened)
    (width,) = {axis.units // axis.groups for axis in mlp_axes(structure)}
    for align in (width, width // 4, 2 * width):
        (to,) = set(aligned([width] * 3, align))
        key = "n_inner" if variant == "gpt2" else "intermediate_size"
        other = open_model(tiny_model(variant, **{key: to}))
        assert aligned_shapes(structure, shapes, align) == shapes_in(other)


def test_widths_are_counted_by_kind() -> None:
    opened = open_model(tiny_model("llama-gqa", intermediate_size=64))
    found = {one["width"]: one for one in multiples(rows_in(opened), (8, 16, 32, 64))}
    assert found["MLP"]["multiples"] == {"8": 3, "16": 3, "32": 3, "64": 3}
    assert found["attention"]["multiples"] == {"8": 0, "16": 0, "32": 0, "64": 0}  # 6 heads of 10
    assert (found["residual stream"]["count"], found["residual stream"]["most"]) == (1, 48)
