"""Several processes make what one makes: torchrun, tiny models, windows that are no even share."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secateur.cli.main import run
from secateur.launched import Launched, launched

COMMON = [
    *("--samples", "7", "--length", "32", "--align", "1", "--prompts", "0", "--batch", "3"),
    *("--dtype", "float32", "--evaluate", "none"),
]  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "flap, bias": ("--method", "flap"),
    "flap, refit": ("--method", "flap", "--repair", "refit"),
    "hywia": ("--method", "hywia"),
    "saap": ("--method", "saap"),
    "llm-pruner": ("--method", "llm-pruner", "--repair", "mask-tuning"),
    "wanda-sp": ("--method", "wanda-sp", "--repair", "refit-no-bias"),
    "best": ("--method", "best"),
    "kl": ("--search", "kl", "--importance", "wifv", "--search-minutes", "0.02"),
    "gates": ("--search", "gates", "--importance", "obs-loss"),
    "regression": ("--fusion", "regression"),
    "fewer windows than ranks": ("--method", "flap", "--repair", "refit", "--samples", "2"),
    "layers": ("--granularity", "layer", "--repair", "refit"),
}
FALLING = Path(__file__).parent / "falling_rank.py"


def several(
    count: int, *words: str, script: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """What `count` processes say of a command."""
    what = [script] if script else ["-m", "secateur"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*start, str(count), *what, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_alike(one: Path, other: Path) -> None:
    """The same plan, and weights that are the same but for the order in which sums were made."""
    assert (one / "plan.json").read_text() == (other / "plan.json").read_text()
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-5, atol=1e-5), name


def told_errors(said: str) -> int:
    """How many errors are told; those of torchrun's own report begin otherwise."""
    return len(re.findall(r"^(?:Error: |This is a bug|Interrupted)", said, re.MULTILINE))


Pruned = Callable[..., list[str]]


@pytest.fixture
def prune(tiny_folder: Callable[..., Path], text_file: Path) -> Pruned:
    """The words of a command that prunes a tiny model."""
    model = str(tiny_folder(num_hidden_layers=4))

    def words(out: Path, *more: str) -> list[str]:
        return [
            *("prune", model, "--ratio", "0.3", "--calibration", str(text_file)),
            *COMMON,
            *more,
            *("--out", str(out)),
        ]

    return words


def test_two_processes_make_what_one_makes(
    prune: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(prune(tmp_path / "one", *RUNS["flap, bias"])) == 0
    alone = capsys.readouterr().out
    done = several(2, *prune(tmp_path / "two", *RUNS["flap, bias"]))
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")
    *said, last = done.stdout.splitlines()
    assert said == alone.splitlines()[:-1], "one speaks"
    assert last.startswith(str(tmp_path / "two"))
    assert not told_errors(done.stderr)


@pytest.mark.slow
@pytest.mark.contest
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_every_method_makes_what_one_process_makes(
    name: str, count: int, prune: Pruned, tmp_path: Path
) -> None:
    several_done = several(count, *prune(tmp_path / "several", *RUNS[name]))
    assert several_done.returncode == 0, several_done.stderr
    one = list(RUNS[name])
    if "--search-minutes" in one:  # as many rounds as the first rank had time for
        record = (tmp_path / "several" / "run.toml").read_text()
        rounds = re.search(r"search_rounds = (\d+)", record)
        assert rounds is not None, record
        one[-2:] = ["--search-rounds", rounds[1]]
    assert run(prune(tmp_path / "one", *one)) == 0
    assert_alike(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mixtral", "gemma2", "granite"])
def test_other_families_too(
    variant: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    words = ["prune", str(tiny_folder(variant)), "--ratio", "0.2", *COMMON, "--method", "flap"]
    words += ["--repair", "refit", "--calibration", str(text_file), "--out"]
    assert run([*words, str(tmp_path / "one")]) == 0
    done = several(2, *words, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_plan_is_applied_and_measured_by_several(
    prune: Pruned, text_file: Path, tmp_path: Path
) -> None:
    words = prune(tmp_path / "plan", "--dry-run", "--method", "hywia")
    assert several(3, *words).returncode == 0
    assert [path.name for path in (tmp_path / "plan").iterdir()] == ["plan.json"]
    measured = ["--evaluate", str(text_file), "--evaluate-tokens", "300", "--prompts", "0"]
    measured += ["--dtype", "float32", "--length", "32", "--samples", "7"]
    apply = ["apply", str(tmp_path / "plan"), words[1], *measured, "--out"]
    assert run([*apply, str(tmp_path / "one")]) == 0
    done = several(2, *apply, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")
    after = [
        float(
            re.search(r"window = .*after = ([\d.]+)", (tmp_path / name / "run.toml").read_text())[1]
        )  # type: ignore[index]
        for name in ("one", "two")
    ]
    assert after[0] == pytest.approx(after[1], rel=1e-5)


@pytest.mark.slow
def test_one_goes_on_with_what_several_found_and_the_other_way(
    prune: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "store"), "--method", "hywia"]
    assert several(3, *prune(tmp_path / "three", *store)).returncode == 0
    capsys.readouterr()
    assert run(prune(tmp_path / "one", *store)) == 0
    assert "repair: as an earlier run found it" in capsys.readouterr().err
    assert_alike(tmp_path / "one", tmp_path / "three")

    assert run(prune(tmp_path / "other", *store, "--seed", "3")) == 0
    done = several(2, *prune(tmp_path / "two", *store, "--seed", "3"))
    assert "repair: as an earlier run found it" in done.stderr
    assert_alike(tmp_path / "other", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_and_the_next_goes_on(
    rank: int, prune: Pruned, tmp_path: Path
) -> None:
    words = prune(tmp_path / "out" / "small", "--method", "hywia")
    done = several(3, "killed", str(rank), "13", *words, script=str(FALLING))
    assert done.returncode != 0
    assert told_errors(done.stderr) == 1
    assert re.search(rf"^Error: rank {rank} of 3 \(.+\) is gone", done.stderr, re.MULTILINE)
    assert not (tmp_path / "out" / "small").exists()

    again = several(2, *words)
    assert again.returncode == 0, again.stderr
    assert "gradients: as an earlier run found it" in again.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small"]
    assert run(prune(tmp_path / "one", "--method", "hywia")) == 0
    assert_alike(tmp_path / "one", tmp_path / "out" / "small")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "layers", "said"),
    [
        ("interrupted", "6", r"^Interrupted; "),
        ("refused", "6", r"^Error: rank 1 of 2 \(.+\): This is no good.\nType something else.$"),
        ("broken", "6", r"^rank 1 of 2 \(.+\) fails:\n(?:Note.*\n)?This is a bug"),
        ("nan", "2", r"^Error: NaN or infinity in the output of layer 2"),
        ("elsewhere", "6", r"^Error: The processes do not do the same: rank 0 .*something else"),
    ],
)
def test_a_rank_that_fails_says_so_once(
    how: str, layers: str, said: str, prune: Pruned, tmp_path: Path
) -> None:
    words = prune(tmp_path / "out" / "small", "--method", "hywia")
    done = several(2, how, "1", layers, *words, script=str(FALLING))
    assert done.returncode != 0
    assert re.search(said, done.stderr, re.MULTILINE), done.stderr
    assert told_errors(done.stderr) == 1
    assert not (tmp_path / "out" / "small").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "MODEL", "--methods", "flap"], "compare runs in one process"),
        (
            ["prune", "MODEL", "--ratio", "0.2", "--recover", "distil"],
            "prune --recover runs in one",
        ),
        (
            ["prune", "MODEL", "--ratio", "0.2", "--device", "cuda:5"],
            "--device cuda:5 is one GPU, and 2 processes",
        ),
        (["prune", "MODEL", "--ratio", "2"], "ratio = 2.0 will not do"),
        (["prune", "MODEL", "--nonsense"], "No such option '--nonsense'"),
    ],
    ids=["compare", "recover", "device", "setting", "option"],
)
def test_what_all_refuse_is_said_once(
    words: list[str], said: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    words = [str(tiny_folder()) if word == "MODEL" else word for word in words]
    done = several(2, *words, "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert told_errors(done.stderr) == 1
    assert said in done.stderr
    alone = words[0] == "compare"  # what is none of theirs they refuse before they meet
    assert done.stderr.count("exitcode  : 2") >= (1 if alone else 2), "each of them ends so"
    assert not done.stdout
    assert not (tmp_path / "out").exists()


def test_a_command_for_one_process_waits_for_no_others(tmp_path: Path) -> None:
    """Whoever runs jobs may say that there are two, where nobody else comes."""
    said = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "inspect", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **said},
    )  # fmt: skip
    assert done.returncode == 2
    assert "inspect runs in one process" in done.stderr


@pytest.mark.slow
def test_one_process_never_asks_for_others(prune: Pruned, tmp_path: Path) -> None:
    words = prune(tmp_path / "out", *RUNS["flap, bias"])
    code = (
        "import sys\n"
        "from secateur.cli.main import run\n"
        f"assert run({words!r}) == 0\n"
        "assert 'secateur.ranks.group' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_torchrun_says_is_read() -> None:
    said = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    here = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launched({**said, **here}) == Launched(3, 4, 1, 2)
    assert launched(said) == Launched(3, 4, 3, 4)
    for other in (
        {},
        {**said, "WORLD_SIZE": "1", "RANK": "0"},
        {**said, "RANK": "four"},
        {**said, "MASTER_ADDR": ""},
        {**said, "RANK": "7"},
    ):
        assert launched(other) == Launched()
