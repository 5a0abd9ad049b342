"""The tables of a benchmark, and what follows from them in sentences; numbers as in its JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..gguf_types import FALLBACK, K_ROW, ROW
from ..units import size_text

Numbers = Mapping[str, Any]

# What a cut should give of the ratio of the parameters.
GOAL = 0.9
# The mixture of types that sentences speak of.
_USUAL = "Q4_K_M"
_FALLS = ", ".join(f"{kind} to {to}" for kind, to in FALLBACK.items())
_STAGES = {"prompt": "ms to first token", "decoding": "tokens/s"}
# With fewer rounds nothing is told of the goal.
_FEW = 5


def names_of(numbers: Numbers) -> list[str]:
    """The models as headings: by their names, or by where they are if these are the same."""
    names = [str(one["name"]).rpartition("/")[2] for one in numbers["models"]]
    return names if len(set(names)) == len(names) else [str(m["model"]) for m in numbers["models"]]


def size_rows(numbers: Numbers) -> list[list[str]]:
    """What is counted: (what, each model, the first one's share of the second's)."""
    models = numbers["models"]
    rows = [_sized("parameters", [one["parameters"] for one in models], "{:,}".format)]
    for context in models[0]["macs"]["token"]:
        found = [one["macs"]["token"][context] for one in models]
        rows.append(_sized(f"MACs a token, context {int(context):,}", found, _millions))
    for dtype in ("float32", "bfloat16"):
        found = [one["weights"][dtype] for one in models]
        rows.append(_sized(f"weights, {dtype}", found, size_text))
    caches = models[0]["cache"]
    for at in dict.fromkeys((0, len(caches) - 1)):
        found = [one["cache"][at]["bytes"] for one in models]
        about = f"batch {caches[at]['batch']}, context {caches[at]['context']:,}"
        rows.append(_sized(f"KV cache, {about}", found, size_text))
    return rows


def _sized(what: str, values: Sequence[int], text: Any) -> list[str]:
    cells = [what, *(text(value) for value in values)]
    if len(values) > 1:
        cells.append(f"{values[0] / values[1]:.1%}" if values[1] else "")
    return cells


def _millions(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def time_columns(numbers: Numbers) -> list[str]:
    """Headings of `time_rows`."""
    pair = ["times as fast", "of parameter ratio"] if len(numbers["models"]) > 1 else []
    return ["", *names_of(numbers), *pair, "rounds"]


def time_rows(numbers: Numbers) -> list[list[str]]:
    """What was timed: medians, and half the distance between quartiles."""
    rows = []
    for one in numbers["timed"]:
        what = f"{_STAGES[one['stage']]}, batch {one['batch']}, context {one['context']:,}"
        count = len(numbers["models"])
        if "seconds" not in one:
            rows.append([what, *["no time"] * count, *["", ""] * (count - 1), "0"])
            continue
        rates = one.get("tokens_per_second") or [s["median"] * 1e3 for s in one["seconds"]]
        cells = [
            f"{rate:,.4g}{_spread(spread, one['rounds'])}"
            for rate, spread in zip(rates, one["seconds"], strict=True)
        ]
        if "speedup" in one:
            spread = one["speedup"]
            cells.append(f"{spread['median']:.2f}{_spread(spread, one['rounds'])}")
            cells.append(f"{one['of_parameter_ratio']:.2f}")
        rows.append([what, *cells, str(one["rounds"])])
    return rows


def _spread(spread: Numbers, rounds: int) -> str:
    """Half the distance between quartiles; one round has none."""
    half = (spread["high"] - spread["low"]) / 2 / max(spread["median"], 1e-12)
    return f" ±{half:.0%}" if rounds > 1 else ""


def machine_line(numbers: Numbers) -> str:
    """What the times are of, in a sentence."""
    found = numbers["machine"]
    load = "" if found["load"] is None else f", load {found['load']:.1f} before"
    return (
        f"{found['device']}, {found['threads']} threads, {found['dtype']}, torch {found['torch']}"
        f"{load}. Medians over rounds in which the models take turns, ± half the distance between"
        " quartiles."
    )


def width_columns(numbers: Numbers) -> list[str]:
    """Headings of `width_rows`."""
    of = numbers["models"][0]["widths"][0]["multiples"]
    return ["width", "how many", "range", *(f"of {one}" for one in of)]


def width_rows(numbers: Numbers) -> list[list[str]]:
    """The first model's widths, and how many are multiples of what."""
    return [
        [
            one["width"],
            str(one["count"]),
            _range(one["least"], one["most"]),
            *(str(count) for count in one["multiples"].values()),
        ]
        for one in numbers["models"][0]["widths"]
    ]


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def gguf_columns(numbers: Numbers) -> list[str]:
    """Headings of `gguf_rows`."""
    aligned = numbers["models"][0]["aligned"]
    return ["GGUF, MB", *names_of(numbers), *(f"with --align {one}" for one in aligned)]


def gguf_rows(numbers: Numbers) -> list[list[str]]:
    """About how large files are by the type of quantisation, in MB (10^6 bytes)."""
    first = numbers["models"][0]
    tables = [*(one["gguf"] for one in numbers["models"]), *first["aligned"].values()]
    return [[kind, *(_megabytes(table[kind]["bytes"]) for table in tables)] for kind in tables[0]]


def _megabytes(size: int | None) -> str:
    return "refused" if size is None else f"{size / 1e6:,.1f}"


def findings(numbers: Numbers) -> list[str]:
    """What follows, in sentences for people."""
    return [*_row_findings(numbers), *_file_findings(numbers), *_time_findings(numbers)]


def _row_findings(numbers: Numbers) -> Iterator[str]:
    """Which rows quantised types and this hardware do not like, and what would help."""
    machine = numbers["machine"]
    natural = machine["natural_multiple"]
    for one in numbers["models"][0]["widths"]:
        off = {int(of): one["count"] - fit for of, fit in one["multiples"].items()}
        if off[ROW]:
            yield (
                f"{_off(one, off[ROW], ROW)}: llama.cpp keeps what reads them in 16 bits beside"
                f" k-quants, and refuses Q4_0 and Q8_0; {_cure(one, ROW)}."
            )
        if off[K_ROW] > off[ROW]:
            yield (
                f"{_off(one, off[K_ROW], K_ROW)}: k-quants fall back there"
                f" ({'if not to 16 bits, ' if off[ROW] else ''}{_FALLS}); {_cure(one, K_ROW)}."
            )
        if off[natural]:
            yield (
                f"{_off(one, off[natural], natural)}, which {machine['device']} works on at once in"
                f" {machine['dtype']}; {_cure(one, natural)}."
            )


def _off(one: Numbers, off: int, multiple: int) -> str:
    """How many widths of a kind are no multiples."""
    which = one["width"]
    if one["count"] == 1:
        return f"The {which} is {one['least']:,} wide, no multiple of {multiple}"
    some = "All" if off == one["count"] else f"{off} of"
    return f"{some} {one['count']} {which} widths are no multiples of {multiple}"


def _cure(one: Numbers, multiple: int) -> str:
    if one["width"] == "MLP":
        return f"prune with --align {multiple}"
    if one["width"] == "attention":
        return "attention goes by whole heads, whatever --align says"
    return "the model was made so"


def _file_findings(numbers: Numbers) -> Iterator[str]:
    """What becomes of the size of a usual file, and where quantising makes a cut no smaller."""
    first, *others = numbers["models"]
    size = first["gguf"][_USUAL]["bytes"]
    for dense in others:
        before = dense["gguf"][_USUAL]["bytes"]
        if size is not None and before is not None and size > before:
            yield (
                f"In {_USUAL} the file is LARGER than that of {names_of(numbers)[1]}:"
                f" {_megabytes(size)} MB against {_megabytes(before)}."
            )
    best = size
    for align, sizes in first["aligned"].items():
        there = sizes[_USUAL]["bytes"]
        if there is not None and (best is None or there < 0.99 * best):
            best = there
            yield (
                f"With --align {align} and as many channels, {_USUAL} takes {_megabytes(there)} MB"
                f" in place of {_megabytes(size)}."
            )


def _time_findings(numbers: Numbers) -> Iterator[str]:
    """Whether tokens come as much faster as parameters are fewer, and what was not timed."""
    pairs = [one for one in numbers["timed"] if one["stage"] == "decoding" and "speedup" in one]
    for one in pairs:
        share, speedup = one["of_parameter_ratio"], one["speedup"]["median"]
        yield (
            f"Decoding at batch {one['batch']} and context {one['context']:,} is {speedup:.2f}"
            f" times as fast, {share:.2f} of the parameter ratio: {_judged(one)}."
        )
    late = [one for one in numbers["timed"] if "seconds" not in one]
    if late:
        seconds = numbers["settings"]["seconds"]
        many = "1 case" if len(late) == 1 else f"{len(late)} cases"
        yield f"{many} had no time within --seconds {seconds:g}: give more."


def _judged(one: Numbers) -> str:
    """Whether a case reaches the goal, where both quartiles say the same."""
    median, low, high = (one["speedup"][key] for key in ("median", "low", "high"))
    goal = GOAL * median / one["of_parameter_ratio"]
    if one["rounds"] < _FEW or low < goal <= high:
        return f"whether it reaches {GOAL} is not settled by {one['rounds']} rounds"
    return f"it {'reaches' if low >= goal else 'misses'} {GOAL}"
