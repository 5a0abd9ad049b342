"""What the words of a report mean, for somebody who prunes for the first time."""

from collections.abc import Iterator, Mapping, Sequence

from ..fusion import FUSIONS
from ..importance import IMPORTANCE
from ..registry import Registered
from ..search import SEARCHES
from ..surgery import REPAIRS
from .averages import averages, several_seeds
from .value import Method, Report, Way

_ALWAYS = (
    (
        "attention head, KV group",
        "An attention layer looks back with several query heads; those that share one key and value"
        " head are a KV group, and go or stay together.",
    ),
    (
        "MLP channel",
        "One neuron of a layer's MLP: a row of its first linears, a column of its last.",
    ),
    (
        "consumer",
        "The linear that reads what a layer's units give: the attention's output projection, the"
        " MLP's last linear.",
    ),
    (
        "perplexity",
        "How many tokens the model hesitates between, on average, when it predicts the next one of"
        " a text. Only numbers of one text and one window length compare: a window is how many"
        " tokens are read at once.",
    ),
    ("linears", "The weight matrices of all layers, without the embedding and the head."),
    (
        "score, search, repair",
        "How much each unit matters; which of them go, given that; and how what stays is mended."
        " Bias adds what the removed units gave on average; refit solves anew for the weights that"
        " read the units; neither is training.",
    ),
    (
        "custom, stock",
        "A stock checkpoint loads like the dense model; a custom one has layers of several widths,"
        ' and loads with trust_remote_code=True or after "import secateur".',
    ),
)
_SEEDS = (
    (
        "seed, \N{PLUS-MINUS SIGN}",
        "A seed draws the calibration windows. A number with \N{PLUS-MINUS SIGN} is a mean over"
        " seeds; behind the sign stands the standard deviation (of a sample: by n - 1). Two methods"
        " that are no further apart than this may change places with other seeds.",
    ),
)
_BEST = (
    (
        "best",
        "The method of that name tries several scores and searches, and takes what is nearest to"
        " the dense model on calibration text that no fit saw.",
    ),
)
_RUN = (
    (
        "KL to dense",
        "How far the predictions are from the dense model's, in nats a token; 0 is no difference.",
    ),
    (
        "condition, damping",
        "How nearly the inputs of a linear say the same thing twice, and what is added so that a"
        " refit does not read too much into that.",
    ),
)


def words(report: Report) -> tuple[tuple[str, str], ...]:
    """(word, meaning) of those that stand on the page of `report`."""
    named = tuple(_names(report))
    if report.kind == "compare":
        means = averages(report.rows)
        best = any(row.method == "best" for row in report.rows)
        return (*_ALWAYS, *_BEST * best, *_SEEDS * several_seeds(means), *named)
    return (*_ALWAYS, *_RUN, *named)


def _names(report: Report) -> Iterator[tuple[str, str]]:
    """The names of scores, searches and repairs on the page, as their registries explain them."""
    parts: list[Method | Way] = [*filter(None, [report.method]), *report.contest]
    scores = [*(one.importance for one in parts), *(row.method for row in report.rows)]
    searches = [one.search for one in parts]
    repairs = [*(one.repair for one in parts), *(row.repair for row in report.rows)]
    yield from _explained("score", scores, {**FUSIONS, **IMPORTANCE})
    yield from _explained("search", searches, SEARCHES)
    yield from _explained("repair", repairs, REPAIRS)


def _explained(
    kind: str, names: Sequence[str], known: Mapping[str, Registered]
) -> Iterator[tuple[str, str]]:
    """(name and kind, summary) of those that are known; a user's own may not be, by then."""
    for name in dict.fromkeys(names):
        if name in known and (said := known[name].summary):
            yield f"{name} ({kind})", said
