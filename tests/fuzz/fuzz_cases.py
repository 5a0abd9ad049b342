"""What the fuzzer tries: a small world of good inputs, and one damaged thing in each case."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuzz_mutations import (
    NAMES,
    NUMBERS,
    mutated_bytes,
    mutated_header,
    mutated_json,
    mutated_lines,
    mutated_toml,
)
from torch import nn

import secateur
from conftest import tiny_model, tiny_tokenizer, write_shards
from secateur.cli.main import run
from secateur.pipeline import convert, discover, inspect, read_plan

# A tiny model of each make of code.
_MODELS = ("llama-gqa", "qwen3-biased", "gpt2", "falcon-gqa", "gemma3", "qwen3_moe", "olmo2")
_QUICK = ["--samples", "4", "--length", "16", "--align", "1", "--evaluate", "none"]
_TRAIN = ["--steps", "1", "--length", "16", "--evaluate", "none"]
_TEXT = " ".join(
    f"The {i} gardener cuts branch {i * 7 % 13} of tree {i * i % 29}." for i in range(60)
)


class World:
    """Good inputs in one folder, made once: models, pruned ones, plans, texts, a state."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.text = place / "text.txt"
        self.text.write_text(_TEXT)
        self._texts()
        self.models = [self._model(variant) for variant in _MODELS]
        self.model = self.models[0]
        self.sharded = self._sharded()
        self.pruned = place / "pruned"
        quiet = ["--method", "flap", "--ratio", "0.3", "--calibration", self.text, *_QUICK]
        self._run("prune", self.model, *quiet, "--out", self.pruned)
        self.fused = place / "fused"
        fused = ["--method", "saap", "--ratio", "0.3", "--calibration", self.text, *_QUICK]
        self._run("prune", self.model, *fused, "--out", self.fused)
        self.packed = place / "packed"
        data = ["--data", self.text, "--bits", "4", "--group", "8", *_TRAIN]
        self._run("recover", self.pruned, "--recipe", "groupwise", *data, "--out", self.packed)
        self.state = self._state()
        # The harness reads all its own files at the first name that it does not know.
        slip = ["evaluate", str(self.model), "--evaluate", "none", "--tasks", "no-such-task"]
        assert run(slip) == 2

    def _run(self, *arguments: object) -> None:
        assert run([str(argument) for argument in arguments]) == 0, arguments

    def _texts(self) -> None:
        rows = [json.dumps({"text": f"{i} {_TEXT[i : i + 90]}"}) for i in range(20)]
        (self.place / "text.jsonl").write_text("\n".join(rows))
        tasks = [{"instruction": f"say {i}", "input": "", "output": f"{i}!"} for i in range(20)]
        (self.place / "tasks.json").write_text(json.dumps(tasks))

    def _model(self, variant: str) -> Path:
        folder = self.place / variant
        tiny_model(variant, num_hidden_layers=2).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    def _sharded(self) -> Path:
        folder = self.place / "sharded"
        shutil.copytree(self.model, folder)
        (folder / "model.safetensors").unlink()
        held = {name: t.clone() for name, t in tiny_model(num_hidden_layers=2).state_dict().items()}
        write_shards(folder, held, 3)
        return folder

    def _state(self) -> dict[str, bytes]:
        """The state of a training that was broken off, and its best parameters: what is where."""
        from conftest import Cut

        out = self.place / "cut"
        with contextlib.suppress(KeyboardInterrupt):
            secateur.recover(self.pruned, out=out, progress=Cut(2), **TRAINING, data=str(self.text))
        files = self.place.glob(".cut.training.safetensors*")
        return {file.name.replace(".cut", ".out", 1): file.read_bytes() for file in files}


TRAINING: dict[str, Any] = {"steps": 3, "length": 16, "evaluate": "none", "batch": 2}


@dataclass(frozen=True)
class Case:
    """What is tried, in a line, and how; `place` is an empty folder of the case's own."""

    what: str
    attempt: Callable[[], object]


def make_case(world: World, place: Path, rng: random.Random, kind: str | None = None) -> Case:
    """The case that `rng` draws, of one kind or of any."""
    names = list(KINDS)
    drawn = rng.choices(names, [KINDS[name][1] for name in names])[0]
    kind = kind or drawn
    what, attempt = KINDS[kind][0](world, place, rng)
    return Case(f"{kind}: {what}", attempt)


Attempt = tuple[str, Callable[[], object]]


def _command(*arguments: object) -> Attempt:
    # what a shell can hand over: no NUL, and foreign bytes as Python has them
    words = [str(one).replace("\0", "").replace("\ud83d", "\udcff") for one in arguments]
    return " ".join(words)[:300], lambda: run([*words, "--traceback"])


def _copied(folder: Path, place: Path, name: str = "m") -> Path:
    return Path(shutil.copytree(folder, place / name))


def _damage(file: Path, change: Callable[..., bytes], rng: random.Random) -> None:
    """`change` takes the bytes of the file, or its text."""
    data = file.read_bytes()
    given = data if change in (mutated_bytes, mutated_header) else data.decode()
    file.write_bytes(change(given, rng))


def _looked_at(folder: Path, world: World, place: Path, rng: random.Random) -> Attempt:
    """One of the commands that read a model."""
    cut = ["--method", "magnitude", *_QUICK, "--out", place / "out"]
    seen = ["--method", "wanda-sp", "--calibration", world.text, *_QUICK, "--dry-run"]
    return rng.choice(
        (
            lambda: _command("inspect", folder),
            lambda: _command("inspect", folder, "--json"),
            lambda: _command("discover", folder),
            lambda: _command("evaluate", folder, "--evaluate", world.text, "--evaluate-tokens", 40),
            lambda: _command("prune", folder, *cut),
            lambda: _command("prune", folder, *seen),
            lambda: ("load", lambda: _loaded(folder)),
        )
    )()


def _loaded(folder: Path) -> object:
    """Ours, or transformers' own complaint of a folder that we took."""
    return secateur.load(folder)


def _config(world: World, place: Path, rng: random.Random) -> Attempt:
    origin = rng.choice((*world.models, world.model, world.pruned, world.packed))
    folder = _copied(origin, place)
    _damage(folder / "config.json", mutated_json, rng)
    return _looked_at(folder, world, place, rng)


def _index(world: World, place: Path, rng: random.Random) -> Attempt:
    folder = _copied(world.sharded, place)
    _damage(folder / "model.safetensors.index.json", mutated_json, rng)
    return _looked_at(folder, world, place, rng)


def _header(world: World, place: Path, rng: random.Random) -> Attempt:
    folder = _copied(rng.choice((world.model, world.pruned, world.packed)), place)
    _damage(folder / "model.safetensors", mutated_header, rng)
    return _looked_at(folder, world, place, rng)


def _tokenizer(world: World, place: Path, rng: random.Random) -> Attempt:
    folder = _copied(world.model, place)
    name = rng.choice(
        (*["tokenizer.json"] * 4, *["tokenizer_config.json"] * 2, "special_tokens_map.json",
         "added_tokens.json", "generation_config.json", "chat_template.jinja"),
    )  # fmt: skip
    file = folder / name
    if not file.exists():
        file.write_text('{"eos_token": "</s>", "a": 3}')
    _damage(file, mutated_json, rng)
    return rng.choice(
        (
            lambda: _command("evaluate", folder, "--evaluate", world.text, "--evaluate-tokens", 40),
            lambda: _command("prune", folder, "--calibration", world.text, *_QUICK, "--dry-run"),
            lambda: _looked_at(folder, world, place, rng),
        )
    )()


def _plan(world: World, place: Path, rng: random.Random) -> Attempt:
    folder = _copied(rng.choice((world.pruned, world.fused)), place)
    _damage(folder / "plan.json", mutated_json, rng)
    plan = folder / "plan.json"
    options = ["--calibration", world.text, "--evaluate", "none", "--out", place / "out"]
    return rng.choice(
        (
            lambda: _command("inspect", folder),
            lambda: _command("inspect", plan),
            lambda: _command("inspect", plan, "--json"),
            lambda: _command("inspect", world.pruned, "--against", folder),
            lambda: _command("inspect", folder, "--against", world.pruned),
            lambda: _command(
                "apply", plan, world.model, "--evaluate", "none", "--out", place / "o"
            ),
            lambda: _command("apply", folder, world.model, *options),
            lambda: ("read_plan", lambda: read_plan(plan)),
            lambda: _command(
                "recover", folder, "--data", world.text, *_TRAIN, "--out", place / "o"
            ),
        )
    )()


def _record(world: World, place: Path, rng: random.Random) -> Attempt:
    origin = rng.choice((world.pruned, world.fused, world.packed))
    folder = _copied(origin, place)
    names = [name for name in ("run.toml", "recovery.toml") if (folder / name).exists()]
    file = folder / rng.choice(names)
    _damage(file, mutated_toml, rng)
    out = ["--out", place / "out"]
    recovers = [
        lambda: _command("recover", "--config", file, "--steps", 3, *out),
        lambda: _command("recover", folder, "--data", world.text, *_TRAIN, *out),
    ]
    if file.name == "recovery.toml":
        return rng.choice(recovers)()
    return rng.choice(
        (
            lambda: _command("inspect", folder),
            lambda: _command("inspect", folder, "--picture", place / "blend.svg"),
            lambda: _command("inspect", folder, "--json"),
            lambda: _command("prune", "--config", file, "--dry-run"),
            lambda: _command("prune", "--config", file, *_QUICK, *out),
            recovers[1],
        )
    )()


def _text(world: World, place: Path, rng: random.Random) -> Attempt:
    name, change = rng.choice(
        (
            ("text.txt", mutated_bytes),
            ("text.jsonl", mutated_lines),
            ("tasks.json", mutated_json),
        )
    )
    file = place / name
    shutil.copyfile(world.place / name, file)
    _damage(file, change, rng)
    out = ["--out", place / "out"]
    recover = ["recover", world.pruned, "--data", file, *_TRAIN, *out, "--samples", "20"]
    return rng.choice(
        (
            lambda: _command("evaluate", world.model, "--evaluate", file),
            lambda: _command("prune", world.model, "--calibration", file, *_QUICK, "--dry-run"),
            lambda: _command(*recover, "--recipe", rng.choice(("distil", "groupwise"))),
        )
    )()


def _companion(world: World, place: Path, rng: random.Random) -> Attempt:
    folder = _copied(world.pruned, place)
    name = rng.choice(("README.md", "README.md", "generation_config.json", "LICENSE", "NOTICE"))
    if not (folder / name).exists():
        (folder / name).write_text("A licence.")
    _damage(folder / name, mutated_bytes, rng)
    out = ["--out", place / "out"]
    return rng.choice(
        (
            lambda: _command("recover", folder, "--data", world.text, *_TRAIN, *out),
            lambda: _command("prune", folder, "--method", "magnitude", *_QUICK, *out),
            lambda: _command("inspect", folder),
        )
    )()


def _state(world: World, place: Path, rng: random.Random) -> Attempt:
    out = place / "out"
    damaged = rng.choice(sorted(world.state))
    for name, content in world.state.items():
        (place / name).write_bytes(mutated_header(content, rng) if name == damaged else content)
    options = {**TRAINING, "data": str(world.text), "force": rng.random() < 0.5}
    return "recover", lambda: secateur.recover(world.pruned, out=out, **options)


_LOOK = ("inspect", "discover", "evaluate")


def _option(world: World, place: Path, rng: random.Random) -> Attempt:
    """A command line with options of drawn values."""
    from secateur.cli.main import cli

    command = rng.choice(cli.list_commands(None))
    words: list[object] = [command]
    given = {
        "prune": [world.model, *_QUICK, "--calibration", world.text],
        "apply": [world.pruned, world.model, "--calibration", world.text, "--evaluate", "none"],
        "compare": [world.model, "--methods", "magnitude", *_QUICK, "--calibration", world.text],
        "recover": [world.pruned, "--data", world.text, *_TRAIN],
        "evaluate": [world.model, "--evaluate", world.text, "--evaluate-tokens", "40"],
        "convert": [world.packed],
    }.get(command, [world.pruned])
    words += given
    if command not in _LOOK:
        words += ["--dry-run"] if command == "prune" and rng.random() < 0.7 else []
        words += ["--out", place / "out"]
    options = [
        option
        for option in cli.get_command(None, command).params
        if option.opts[0].startswith("--")
        and option.name not in ("help", "help_all", "device", "use", "out")
    ]
    for option in rng.sample(options, min(len(options), rng.choice((1, 1, 2, 3)))):
        words.append(option.opts[0])
        # what is asked for is done, however long it takes
        if option.name in ("steps", "epochs", "minutes"):
            words.append(rng.choice((*NAMES, "0", "-1", "2", "1e9", str(10**19))))
        elif not option.is_flag:
            words.append(rng.choice((*NAMES, *map(str, NUMBERS), "1,2", "0.2,x", "all", "0")))
    return _command(*words)


def _place(world: World, place: Path, rng: random.Random) -> Attempt:
    """An argument that names a place nobody should name."""
    name = rng.choice(NAMES)
    kind = rng.randrange(4)
    odd: object = name
    if kind == 0 and name.strip(" ./~") and len(name) < 200 and name != "\ud83d":
        odd = _copied(world.pruned, place, name.replace("/", "_").replace("\0", ""))
    elif kind == 1:
        (place / "loop").symlink_to(place / "loop")
        odd = place / "loop"
    elif kind == 2:
        odd = place / name
    odd = str(odd)
    safe = place / "out"
    quick = ["--method", "magnitude", *_QUICK]
    return rng.choice(
        (
            lambda: _command("inspect", odd),
            lambda: _command("inspect", odd, "--json"),
            lambda: _command("inspect", world.pruned, "--against", odd),
            lambda: _command("inspect", world.fused, "--picture", f"{odd}.svg"),
            lambda: _command("discover", odd),
            lambda: _command("discover", world.model, "--picture", f"{odd}.svg"),
            lambda: _command("evaluate", odd, "--evaluate", world.text, "--evaluate-tokens", 40),
            lambda: _command("evaluate", world.model, "--evaluate", odd, "--evaluate-tokens", 40),
            lambda: _command("compare", odd, "--methods", "magnitude", *_QUICK),
            lambda: _command("compare", world.model, "--methods", odd, *_QUICK),
            lambda: _command("prune", odd, *quick, "--out", safe),
            lambda: _command("prune", "--config", odd, "--out", safe),
            lambda: _command("prune", world.model, "--calibration", odd, *_QUICK, "--out", safe),
            lambda: _command("apply", odd, world.model, "--out", safe),
            lambda: _command("apply", world.pruned, odd, "--out", safe),
            lambda: _command("convert", odd, "--out", safe),
            lambda: _command("recover", odd, "--data", world.text, *_TRAIN, "--out", safe),
            lambda: _command("recover", world.pruned, "--data", odd, *_TRAIN, "--out", safe),
            lambda: _command(
                "recover", world.pruned, "--teacher", odd, "--data", world.text, *_TRAIN,
                "--out", safe,
            ),
            lambda: _command("prune", world.model, *quick, "--out", _inside(odd, place)),
        )
    )()  # fmt: skip


def _inside(name: str, place: Path) -> Path:
    """`name`, somewhere below `place`: nothing else may be written to."""
    return place / "below" / name.replace("..", "_").strip("/")


class _Odd:
    """An object that is nothing in particular."""


def _objects(world: World, place: Path, rng: random.Random) -> Any:
    return rng.choice(
        (
            *NUMBERS, *NAMES, None, True, float("nan"), b"bytes", object(), _Odd, _Odd(), print,
            [], [2.5], ["a"], [None], (), {}, {"a": 1}, {1: 2}, {2, 3}, torch.float32,
            torch.zeros(2),
            nn.Linear(2, 2), nn.Module, 10**5000, Path("nowhere"), lambda: None, iter([]), range(3),
            complex(1, 2), world.text, world.model, str(world.model), {"model": "x"},
        )
    )  # fmt: skip


def _argument(world: World, place: Path, rng: random.Random) -> Attempt:
    """A call of a public function with one or two wrong arguments."""
    text = str(world.text)
    quick = {"calibration": text, "samples": 4, "length": 16, "align": 1, "evaluate": "none"}
    cut = {"method": "magnitude", **quick}
    plan = secateur.Plan({"layers.0.mlp": (0, 2)}, "x", "y")
    calls: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
        "prune": (secateur.prune, {"model": world.model, "out": None, "tokenizer": None,
                  "dry_run": True, "force": False, "progress": None, **cut}),
        "apply": (secateur.apply, {"plan": rng.choice((plan, world.pruned)), "model": world.model,
                  "out": None, "tokenizer": None, "progress": None, **quick}),
        "compare": (secateur.compare, {"model": world.model, "methods": ["magnitude"],
                    "ratios": [0.2], "repairs": [], "tokenizer": None, "progress": None,
                    "each": None, **quick}),
        "evaluate": (secateur.evaluate, {"model": world.model, "text": text, "windows": [16],
                     "tokens": 40, "batch": 2, "dtype": "auto", "tokenizer": None,
                     "progress": None}),
        "recover": (secateur.recover, {"model": world.pruned, "out": place / "out", "data": text,
                    "recipe": "distil", "force": False, "keep_adapter": False, "progress": None,
                    "steps": 1, "length": 16, "evaluate": "none"}),
        "load": (secateur.load, {"folder": world.pruned, "dtype": "auto"}),
        "open_model": (secateur.open_model, {"model": world.pruned, "revision": None}),
        "read_plan": (read_plan, {"path": world.pruned}),
        "inspect": (inspect, {"folder": world.pruned, "against": world.pruned}),
        "discover": (discover, {"model": world.model}),
        "convert": (convert, {"model": world.packed, "out": place / "out", "force": False,
                    "tokenizer": None, "progress": None}),
    }  # fmt: skip
    name = rng.choice(list(calls))
    function, arguments = calls[name]
    changed = rng.sample(list(arguments), min(len(arguments), rng.choice((1, 1, 1, 2))))
    for key in changed:
        arguments[key] = _objects(world, place, rng)
    for key in ("out",):  # what is written stays in the case's own place
        if isinstance(arguments.get(key), str | Path):
            arguments[key] = _inside(str(arguments[key]), place)
    if isinstance(arguments.get("steps"), int) and 3 < arguments["steps"] < 2**31:
        arguments["steps"] = 3  # what is asked for is done, however long it takes
    if callable(arguments.get("each")):  # what the caller's own function raises is the caller's
        arguments["each"] = None
    said = ", ".join(f"{key}={_short(arguments[key])}" for key in changed)
    return f"{name}({said})", lambda: function(**arguments)


def _short(value: object) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # more digits than Python prints
        return "10**5000"


def _made_plan(world: World, place: Path, rng: random.Random) -> Attempt:
    """A plan that a program made."""
    right = read_plan(world.pruned)
    keep: dict[Any, Any] = dict(right.keep)
    name = rng.choice(list(keep))
    keep[name] = rng.choice(
        ((-1, 2), (0.5, 2), (2, 0), (0, 0), ("a",), (10**9,), None, 3, "0-2", [0], (True,), (None,))
    )
    plan = secateur.Plan(keep, right.architecture, right.weights)
    return f"apply(keep[{name}]={keep[name]})", lambda: secateur.apply(
        plan, world.model, evaluate="none"
    )


KINDS: dict[str, tuple[Callable[[World, Path, random.Random], Attempt], float]] = {
    "config": (_config, 5),
    "index": (_index, 1),
    "header": (_header, 2),
    "tokenizer": (_tokenizer, 3),
    "plan": (_plan, 2),
    "record": (_record, 2),
    "text": (_text, 1),
    "companion": (_companion, 0.5),
    "state": (_state, 0.5),
    "option": (_option, 2),
    "place": (_place, 2),
    "argument": (_argument, 3),
    "made-plan": (_made_plan, 0.2),
}
