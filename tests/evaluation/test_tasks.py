"""Tasks of the harness on streamed models, against the harness's own way on our folders."""

import json
import math
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from conftest import shared, tiny_tokenizer
from secateur.errors import SecateurError
from secateur.evaluation import Asked, TaskResult, asked_tasks, harness, local_tasks, means
from secateur.evaluation.standard_error import Estimate

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

WORDS = (
    *("the", "gardener", "cuts", "a", "branch", "of", "an", "old", "tree"),
    *("and", "rests", "in", "shade", "until", "noon"),
)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))

    return [
        {
            "query": f"Question: {text(1, 6)}?" if number % 2 else text(2, 8),
            "choices": [text(1, 3) for _ in range(3)],
            "gold": draw.randrange(3),
        }
        for number in range(count)
    ]


def swapped(count: int) -> list[dict[str, Any]]:
    return [
        {
            "context_options": row["choices"][:2],
            "continuation": row["query"],
            "gold": row["gold"] % 2,
        }
        for row in rows(count, seed=1)
    ]


def write(file: Path, questions: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return file


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder of two tasks."""
    folder = tmp_path / "tasks"
    write(folder / "pick.jsonl", rows(12))
    write(folder / "swap.jsonl", swapped(9))
    return folder


def of_whole_model(folder: Path, questions: Path, name: str) -> list[list[tuple[float, bool]]]:
    """The other route: the harness's own `hf` on the folder, with all weights in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

    run = harness()
    with run._silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=3)
        (task,) = run.loaded(asked_tasks([str(questions / f"{name}.jsonl")]))["tasks"].values()
        task.build_all_requests()
        found = own.loglikelihood(task.instances, disable_tqdm=True)
    items: dict[int, list[tuple[float, bool]]] = {}
    for one, answer in zip(task.instances, found, strict=True):
        items.setdefault(one.doc_id, []).append(answer)
    return list(items.values())


@pytest.mark.parametrize("name", ["pick", "swap"])
def test_accuracies_and_errors_are_those_of_the_harness_on_the_pruned_folder(
    name: str, pruned: Callable[..., Path], questions: Path
) -> None:
    folder = pruned()
    asked = [json.loads(line) for line in (questions / f"{name}.jsonl").read_text().splitlines()]
    (found,) = secateur.evaluate(folder, tasks=str(questions / f"{name}.jsonl")).tasks
    whole = of_whole_model(folder, questions, name)
    right = [
        max(range(len(one)), key=lambda n: one[n][0]) == row["gold"]
        for one, row in zip(whole, asked, strict=True)
    ]
    assert found.items == len(asked)
    assert found.values["acc"] == tuple(map(float, right))
    share = sum(right) / len(right)
    assert found.metrics["acc"].value == pytest.approx(share)
    # of shares there is a formula of its own
    error = math.sqrt(share * (1 - share) / (len(right) - 1))
    assert found.metrics["acc"].error == pytest.approx(error)
    if name == "swap":
        assert set(found.metrics) == {"acc"}
        return
    normed = [
        max(range(3), key=lambda n: one[n][0] / len(row["choices"][n])) == row["gold"]
        for one, row in zip(whole, asked, strict=True)
    ]
    assert found.values["acc_norm"] == tuple(map(float, normed))


def test_log_likelihoods_are_those_of_the_harness_item_by_item(
    pruned: Callable[..., Path], questions: Path
) -> None:
    folder, run = pruned(), harness()
    whole = [one for item in of_whole_model(folder, questions, "pick") for one in item]
    opened = secateur.open_model(folder)
    source = opened.streamed(device="cpu")
    scored = run.Scored(source, opened.tokenizer, opened.context, lambda: None)
    (task,) = run.loaded(asked_tasks([str(questions / "pick.jsonl")]))["tasks"].values()
    with run._silent():
        task.build_all_requests()
    found = run.StreamedLM(scored).loglikelihood(task.instances)
    assert len(found) == len(whole) == 36
    for (value, greedy), (wanted, likeliest) in zip(found, whole, strict=True):
        assert value == pytest.approx(wanted, abs=1e-4)
        assert greedy == likeliest


@pytest.mark.parametrize("adds", [False, True])
def test_pairs_are_cut_into_tokens_as_the_harness_cuts_them(adds: bool, model: Path) -> None:
    """With a tokenizer that puts a BOS before a text, and with one that does not."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    if adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    pairs = [("A tree ", "rests"), ("", "shade"), ("<s>begun", " so"), ("of", " a"), ("", "<s>x")]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    run, opened = harness(), secateur.open_model(model)
    with run._silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = HFLM(pretrained=opened.whole(torch.float32), tokenizer=tokenizer, device="cpu")
        wanted = own.loglikelihood(asked, disable_tqdm=True)
    scored = run.Scored(opened.streamed(device="cpu"), tokenizer, opened.context, lambda: None)
    found = run.StreamedLM(scored).loglikelihood(asked)
    for (value, greedy), (other, likeliest) in zip(found, wanted, strict=True):
        assert value == pytest.approx(other, abs=1e-4)
        assert greedy == likeliest


def test_whole_texts_and_what_a_model_writes_are_those_of_the_harness(model: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    run, opened = harness(), secateur.open_model(model)
    scored = run.Scored(
        opened.streamed(device="cpu"),
        opened.tokenizer,
        opened.context,
        lambda: opened.whole(torch.float32),
    )
    text = "The gardener rests. " * 9
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0), Instance(
        "loglikelihood_rolling", {}, ("Short.",), 1)]  # fmt: skip
    writing = [Instance("generate_until", {}, ("The tree", {"until": ["q"], "max_gen_toks": 5}), 0)]
    with run._silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = HFLM(pretrained=str(model), device="cpu")
        ours = run.StreamedLM(scored)
        wanted = own.loglikelihood_rolling(rolling, disable_tqdm=True)
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(wanted, rel=1e-5)
        written = own.generate_until(writing, disable_tqdm=True)
        assert ours.generate_until(writing) == written


def test_limit_changes_and_means(
    pruned: Callable[..., Path], questions: Path, tmp_path: Path
) -> None:
    folder = pruned()
    dense = next(tmp_path.glob("dense-*"))
    found = secateur.evaluate(folder, tasks=[str(questions)], against=dense, limit=7)
    assert [(one.name, one.items) for one in found.tasks] == [("pick", 7), ("swap", 7)]
    assert not found.perplexities
    for ours, theirs in zip(found.tasks, found.dense_tasks, strict=True):
        for metric, change in found.task_changes[ours.name].items():
            apart = [a - b for a, b in zip(ours.values[metric], theirs.values[metric], strict=True)]
            assert change.value == pytest.approx(sum(apart) / 7)
            spread = torch.tensor(apart, dtype=torch.float64).std().item()
            assert change.error == pytest.approx(spread / math.sqrt(7))
    accuracies = [one.metrics["acc"] for one in found.tasks]
    assert found.means["acc"].value == pytest.approx(sum(one.value for one in accuracies) / 2)
    assert found.means["acc"].error == pytest.approx(
        math.hypot(*(one.error or 0 for one in accuracies)) / 2
    )
    said = found.to_json()
    assert said["tasks"][0]["acc"].keys() == {"value", "standard_error"}
    assert set(said) >= {"means", "dense_means", "task_changes", "form"}


def test_the_papers_mean_norms_hellaswag_and_obqa_alone() -> None:
    found = [
        TaskResult(name, 10, {"acc": Estimate(acc, 0.0), "acc_norm": Estimate(norm, 0.0)})
        for name, acc, norm in (("piqa", 0.1, 0.9), ("hellaswag", 0.2, 0.5))
    ]
    found.append(TaskResult("all", 20, {"acc": Estimate(1.0, 0.0)}, group=True))
    told = {name: one.value for name, one in means(found).items()}
    assert told == pytest.approx({"acc": 0.15, "acc_norm": 0.7, "papers": 0.3})
    assert means(found[:1]) == {}


def test_a_question_is_answered_after_answer(tmp_path: Path) -> None:
    asked = [
        ("Question: Why?", "Question: Why?\nAnswer:"),
        ("Question: How?\n", "Question: How?\nAnswer:"),
        ("Passage: A.\nQuestion: B\nand C?", "Passage: A.\nQuestion: B\nand C?\nAnswer:"),
        ("Question: Why? Answer:", "Question: Why? Answer:"),
        ("A tree is", "A tree is"),
        ("No Question: here", "No Question: here"),
    ]
    made = [{"query": query, "choices": ["a", "b"], "gold": 0} for query, _ in asked]
    (task,) = local_tasks.local_tasks(str(write(tmp_path / "q.jsonl", made)))
    assert [row["query"] for row in task.rows] == [prompt for _, prompt in asked]


def test_a_line_may_hold_every_other_line_separator(tmp_path: Path) -> None:
    file, text = tmp_path / "q.jsonl", "one\u2028two\x85three"
    row = json.dumps({"query": text, "choices": ["a", "b"], "gold": 0}, ensure_ascii=False)
    file.write_text(f"{row}\r\n\n{row}\n", encoding="utf-8")
    (task,) = asked_tasks([str(file)]).local
    assert [one["query"] for one in task.rows] == [text, text]


def test_the_seven_local_files_are_read() -> None:
    asked = asked_tasks([str(shared("data/zeroshot"))])
    assert sorted(one.name for one in asked.local) == [
        *("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbook_qa", "piqa", "winogrande")
    ]
    assert [one.name for one in asked.local if one.before] == ["winogrande"]
    by_name = {one.name: one.rows for one in asked.local}
    assert len(by_name["hellaswag"]) == 10042
    assert all(row["query"].endswith("?\nAnswer:") for row in by_name["boolq"])


def test_what_is_typed() -> None:
    assert asked_tasks(["zero-shot, gsm8k", "piqa"]).names == (
        *("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
        "gsm8k",
    )
    assert not Asked()


GOOD = {"query": "a", "choices": ["b", "c"], "gold": 1}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "q.jsonl has 0 questions"),
        ([GOOD], "has 1 questions"),
        ([GOOD, "{"], r"q.jsonl, line 2: not JSON"),
        ([GOOD, "", [1]], r"line 3: not an object"),
        ([GOOD, {"query": "a", "gold": 1}], r"line 2: no 'choices'"),
        ([GOOD, {**GOOD, "choices": ["b"]}], "line 2: 'choices' is not a list of two"),
        ([GOOD, {**GOOD, "choices": ["b", ""]}], "line 2: 'choices' is not a list of two"),
        ([GOOD, {**GOOD, "gold": 2}], "line 2: 'gold' is not the number of a choice, from 0 to 1"),
        ([GOOD, {**GOOD, "gold": True}], "line 2: 'gold'"),
        ([{**GOOD, "query": 3}, GOOD], "line 1: 'query' is not a text"),
        (
            [{"context_options": ["a", "b"], "continuation": "c", "gold": 0}, GOOD],
            "line 2: no 'continuation'",
        ),
    ],
)
def test_ill_files_are_refused_by_line(lines: list[Any], says: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    with pytest.raises(SecateurError, match=says) as caught:
        asked_tasks([str(file)])
    assert len(str(caught.value).splitlines()) <= 2


def test_what_is_no_task_is_refused(
    model: Path, tmp_path: Path, questions: Path, assert_refused: Callable[..., str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "q.txt").write_text("x")
    for tasks, says in {
        tmp_path / "no.jsonl": ["No such tasks: .*no.jsonl", "a folder of such files"],
        tmp_path / "empty": ["has no .jsonl file"],
        tmp_path / "q.txt": ["No such tasks"],
        f"{questions},{questions}/pick.jsonl": ["two tasks 'pick'"],
    }.items():
        assert_refused("evaluate", model, "--tasks", tasks, says=says)
    assert_refused("evaluate", model, "--tasks", questions, "--limit", "1", says=["limit", "2 or"])


def test_without_the_harness_the_line_to_type_is_told(
    model: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., str],
) -> None:
    monkeypatch.delitem(sys.modules, "secateur.evaluation.in_harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    says = [r'pip install "secateur\[harness\]"']
    assert_refused("evaluate", model, "--tasks", questions, says=says)


def test_data_that_cannot_be_had_are_told(model: Path, assert_refused: Callable[..., str]) -> None:
    says = ["task 'piqa' cannot be read", "local files: --tasks FOLDER"]
    assert_refused("evaluate", model, "--tasks", "piqa", says=says)


@pytest.mark.slow
def test_the_harness_is_imported_when_tasks_are_asked_for(model: Path, text_file: Path) -> None:
    code = (
        "import sys, secateur\n"
        f"found = secateur.evaluate({str(model)!r}, {str(text_file)!r}, prompts='a')\n"
        "print('lm_eval' in sys.modules, 'datasets' in sys.modules, len(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "1"], done.stderr


@pytest.mark.slow
def test_an_unknown_name_has_near_ones(model: Path, assert_refused: Callable[..., str]) -> None:
    says = ["Unknown task 'hellaswagg'", "'hellaswag'", "zero-shot"]
    assert_refused("evaluate", model, "--tasks", "hellaswagg", says=says)


@pytest.mark.slow
def test_the_harness_command_line_finds_the_same(
    pruned: Callable[..., Path], questions: Path, tmp_path: Path
) -> None:
    """`lm_eval` in a process of its own, without this package's classes, on a custom folder."""
    folder = pruned()
    rows = local_tasks.local_tasks(str(questions / "pick.jsonl"))[0].rows
    data = write(tmp_path / "harness" / "pick.jsonl", list(rows))
    config = {
        "task": "ours_pick",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    }
    (tmp_path / "harness" / "pick.yaml").write_text(json.dumps(config))
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={folder},trust_remote_code=True"),
        *("--tasks", str(tmp_path / "harness" / "pick.yaml"), "--output_path", str(out)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = out.rglob("results*.json")
    wanted = json.loads(file.read_text())["results"]["ours_pick"]
    (found,) = secateur.evaluate(folder, tasks=str(questions / "pick.jsonl")).tasks
    for metric, estimate in found.metrics.items():
        assert estimate.value == pytest.approx(wanted[f"{metric},none"])
        assert estimate.error == pytest.approx(wanted[f"{metric}_stderr,none"])
