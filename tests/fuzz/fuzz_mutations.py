"""Seeded damage to what a person may bring: JSON, TOML, bytes, names, options."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

# Written by hand where json.dumps would not: digits beyond what Python converts, deep nesting, a
# key that stands twice.
_RAW = {
    "@@digits@@": "1" + "0" * 5000,
    "@@lists@@": "[" * 3000 + "]" * 3000,
    "@@objects@@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@@nan@@": "NaN",
    "@@infinity@@": "-Infinity",
    "@@float@@": "1e999",
}
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 0.5, -0.0, 10**6, 10**9, 10**12, 10**19, 2**63 - 1, -(10**9), 1e308, 1e-300,
)  # fmt: skip
NAMES = (
    "",
    " ",
    ".",
    "..",
    "x",
    "auto",
    "none",
    "float16",
    "LlamaForCausalLM",
    "[/red]",
    "[bold]name",
    "../../x",
    "/etc/passwd",
    "~nouser/x",
    "a\0b",
    "\x1b[31mred",
    "line\nbreak",
    "\u202eright to left",
    "e\u0301\U0001f600",
    "\ud83d",
    "$\\frac{a}{$",
    "=1+1",
    "a" * 300,
    "a" * 10_000,
    "0-999999999999",
    "9" * 5000,
    "-1",
    "1e9",
    "nan",
    "true",
    "0-2,5",
    "{}",
    "[]",
)
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [None], [[]], {"a": 1}, [0, "x"], *_RAW)


def any_value(rng: random.Random) -> Any:
    """A value that is seldom the right one."""
    return copy.deepcopy(rng.choice((*NUMBERS, *NAMES, *_OTHERS)))  # it may be damaged further


def mutated_json(text: str, rng: random.Random) -> bytes:
    """A JSON text with one to three faults, in its values or in its bytes."""
    if rng.random() < 0.25:
        return mutated_bytes(text.encode(), rng)
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(value, rng)
    return with_raw(json.dumps(value, indent=rng.choice((None, 1)))).encode()


def with_raw(text: str) -> str:
    """JSON text with what `json.dumps` cannot write in place of its names."""
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def _changed(value: Any, rng: random.Random) -> Any:
    """One fault at a place that is drawn."""
    if not (isinstance(value, dict | list) and value) or rng.random() < 0.15:
        return _replaced(value, rng)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    inside = value[key]
    if isinstance(inside, dict | list) and inside and rng.random() < 0.75:
        value[key] = _changed(inside, rng)
    elif isinstance(value, dict):
        _in_object(value, key, rng)
    else:
        _in_list(value, key, rng)
    return value


def _replaced(value: Any, rng: random.Random) -> Any:
    near: list[Any] = [any_value(rng)]
    if isinstance(value, bool):
        near.append(not value)
    elif isinstance(value, int | float):
        near += [-value, value + 1, value * 1000, str(value), [value], float(value)]
    elif isinstance(value, str):
        near += [value + "\0", value.upper(), [value], value[:-1], value * 2, rng.choice(NAMES)]
    elif value is not None:
        near += [str(value), list(value), None]
    return rng.choice(near)


def _in_object(value: dict[str, Any], key: str, rng: random.Random) -> None:
    what = rng.randrange(6)
    if what == 0:
        del value[key]
    elif what == 1:
        value[rng.choice(NAMES)] = value.pop(key)
    elif what == 2:
        other = rng.choice(list(value))
        value[key], value[other] = value[other], value[key]
    elif what == 3:
        value[rng.choice(NAMES)] = any_value(rng)
    else:
        value[key] = _replaced(value[key], rng)


def _in_list(value: list[Any], index: int, rng: random.Random) -> None:
    what = rng.randrange(4)
    if what == 0:
        del value[index]
    elif what == 1:
        value.insert(index, value[index])
    else:
        value[index] = _replaced(value[index], rng)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, repeated, foreign or no bytes."""
    place = rng.randrange(len(data) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: data[:place],
        lambda: data[place:],
        lambda: data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:],
        lambda: _flipped(data, rng),
        lambda: data[:place] + data[place : place + 40] + data[place:],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: rng.choice((b"", b"null", b"[]", b"{}", b"1", b'"x"', b"\0" * 9, b"[" * 100_000)),
        lambda: b'{"a":' * 50_000,
        lambda: b"1" * 10_000,
    )
    return rng.choice(changes)()


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


_TOML = (
    "0", "-1", "1e9", "nan", "inf", "1000000000000", "9" * 25, "9" * 5000, "true", '""', '"x"',
    '"[/red]"', '"\\u001b[31m"', "[]", "{}", "[1, 2]", '"../../x"', '"none"', "1979-05-27",
    "[" * 3000 + "]" * 3000, "{ a = 1 }", '"' + "a" * 5000 + '"',
)  # fmt: skip


def mutated_toml(text: str, rng: random.Random) -> bytes:
    """A TOML text with one to three faults, in its lines or in its bytes."""
    if rng.random() < 0.25:
        return mutated_bytes(text.encode(), rng)
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        index = rng.randrange(len(lines))
        name = lines[index].partition("=")[0].strip() or "x"
        lines[index : index + 1] = rng.choice(
            (
                [],
                [lines[index], lines[index]],
                *([[f"{name} = {rng.choice(_TOML)}"]] * 5),
                [f"[{name}]"],
                [f"[{rng.choice(('settings', 'results', 'results.blend', 'a.b'))}]"],
                [lines[index], f"{rng.choice(('use', 'teacher', 'x', 'force'))} = 1"],
            )
        )
    return "\n".join(lines).encode()


def mutated_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header, its length or the bytes after it are wrong."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    what = rng.randrange(5)
    if what == 0:
        return mutated_bytes(data, rng)
    if what == 1:
        size = rng.choice((0, 1, length - 1, length + 1, 10**9, 2**63, 2**64 - 1))
        return size.to_bytes(8, "little") + header + rest
    if what == 2:
        return data[:8] + header + mutated_bytes(rest, rng)
    changed = mutated_json(header.decode(), rng)
    return len(changed).to_bytes(8, "little") + changed + rest


def mutated_lines(text: str, rng: random.Random) -> bytes:
    """A .jsonl text with a fault in one line."""
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    changed = mutated_json(lines[index], rng)
    return b"\n".join([*map(str.encode, lines[:index]), changed, *map(str.encode, lines[index:])])
