"""JSON, TOML, paths and names from outside: bounded, and refused in our words."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.checkpoint import read_config, read_json
from secateur.config import read_record
from secateur.errors import ArgumentError, SecateurError
from secateur.parsing import parse_json, parse_toml, read_text
from secateur.paths import expanded, resolved, typed_path
from secateur.shown import one_line, printable

# --- JSON and TOML --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested"),
        ("[" * 120 + "]" * 120, "nested more than 100"),
        ("1" * 10_000, "10000 digits"),
        ('{"a": [-' + "9" * 41 + "]}", "a number of 42 digits"),
        ('{"a": }', "line 1"),
        ("", "line 1"),
    ],
)
def test_json_that_would_take_the_parser_down_is_refused(text: str, says: str) -> None:
    with pytest.raises(SecateurError, match=says):
        parse_json(text, SecateurError)


def test_json_that_models_have_is_read() -> None:
    limit = 1000000000000000019884624838656  # transformers' model_max_length
    deep = json.dumps({"a": [limit, 1.5, None, True, {"b": "\U0001f600"}]})
    assert parse_json(deep, SecateurError) == json.loads(deep)
    assert parse_json("[" * 99 + "]" * 99, SecateurError) == json.loads("[" * 99 + "]" * 99)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested"),
        ("a = " + "9" * 5000, "digits"),
        ("a = " + "9" * 50, "digits"),
        ("a = ", "Invalid value"),
        ("a." * 3000 + "b = 1", "nested"),
    ],
)
def test_toml_that_would_take_the_parser_down_is_refused(text: str, says: str) -> None:
    with pytest.raises(SecateurError, match=says):
        parse_toml(text, SecateurError)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    for name, text in (("a.json", '{"a": 1}'), ("a.toml", "a = 1")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert read_record(tmp_path / "a.toml") == {"a": 1}


def test_a_file_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.parsing.MOST_BYTES", 2**20)
    with pytest.raises(SecateurError, match="more than 1 MiB"):
        read_text(Path("/dev/zero"))
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SecateurError, match="more than 1 MiB"):
        read_json(tmp_path / "sparse.json")


# --- config.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected 1 to 1000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"n_layer": -1}, "n_layer is -1"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"n_inner": 10**9}, "n_inner is 1000000000, expected at most 16777216"),
        ({"head_dim": 10**9}, "head_dim is 1000000000, expected at most 1048576"),
        ({"num_attention_heads": 10**12}, "num_attention_heads"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok is 5, expected 1 to 4"),
        ({"architectures": 5}, "architectures is 5, expected a list"),
        ({"architectures": [None]}, "architectures"),
        ({"auto_map": []}, "auto_map"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"packed": "x"}, "packed"),
        ({"per_layer_config": {"0": 3}}, "per_layer_config .* expected an object of objects"),
        ({"pruned_modules": {"m": {"attributes": 3}}}, "attributes of m is 3, expected an object"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused_before_anything_is_built(
    changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **changes}))
    with pytest.raises(SecateurError, match=says):
        read_config(tmp_path)


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/x", "a\0b", "a" * 300, "x/" + "b" * 5000, "half \ud83d"]
)
def test_a_name_that_the_system_cannot_look_at_is_refused(name: str) -> None:
    with pytest.raises(SecateurError, match=r"--text: ") as caught:
        typed_path(name, "--text")
    assert len(str(caught.value).splitlines()[0]) < 400 or len(name) > 1000


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for look in (typed_path, resolved):
        with pytest.raises(SecateurError):
            look(loop)


def test_a_folder_that_may_not_be_looked_into_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "inside").mkdir(parents=True)
    closed.chmod(0)
    try:
        with _as_nobody(), pytest.raises(SecateurError, match="Permission denied"):
            typed_path(closed / "inside")
    finally:
        closed.chmod(0o700)


class _as_nobody:  # noqa: N801
    """Root may look anywhere."""

    def __enter__(self) -> None:
        self._own = os.geteuid()
        if self._own == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if self._own == 0:
            os.seteuid(self._own)


def test_paths_that_there_are_and_paths_to_be_made_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path("~/x") == tmp_path / "x"
    assert typed_path(tmp_path) == tmp_path
    assert expanded("a/b") == Path("a/b")
    file = tmp_path / "file"
    file.touch()
    assert typed_path(file / "below") == file / "below"
    assert typed_path(os.fsdecode(b"caf\xe9")) == Path("caf\udce9")  # a name that is no UTF-8
    with pytest.raises(ArgumentError, match="bytes"):
        typed_path(_Bytes())


class _Bytes(os.PathLike[str]):
    def __fspath__(self) -> str:
        return b"x"  # type: ignore[return-value]


# --- names on the screen --------------------------------------------------------------------------


@pytest.mark.parametrize("show", [printable, one_line])
def test_what_a_terminal_obeys_is_shown_as_an_escape(show: Callable[[str], str]) -> None:
    assert show("\x1b[31mred\x07") == r"\x1b[31mred\x07"
    assert show("a\u202eb") == r"a\u202eb"
    assert show("\ud83d\x9b") == r"\ud83d\x9b"
    plain = "ein Name, \u540d\u524d \U0001f600 e\u0301 [/x] $1"
    assert show(plain) == plain


def test_a_name_is_one_line_and_a_message_may_have_two() -> None:
    assert printable("a\nb") == "a\nb"
    assert one_line("a\nb") == r"a\nb"
    assert str(SecateurError("bad \x1b name\nType: x")) == "bad \\x1b name\nType: x"
