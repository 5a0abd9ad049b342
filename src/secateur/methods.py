"""Methods by name: a score, a search and a repair that belong together."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """A named recipe; each part can be overridden by name."""

    name: str
    summary: str
    importance: str
    search: str
    repair: str
    paper: str


METHODS = {
    method.name: method
    for method in (
        Method(
            "flap",
            "Fluctuation of inputs, one global ranking, lost means kept as a bias.",
            "wifv",
            "AL-AM",
            "bias",
            "https://arxiv.org/abs/2312.11983",
        ),
        Method(
            "wanda-sp",
            "Weight magnitude times input norm, the same share of each layer.",
            "wanda-sp",
            "uniform",
            "none",
            "https://arxiv.org/abs/2306.11695",
        ),
        Method(
            "magnitude",
            "Squared weights (L2), the same share of each layer; no data.",
            "magnitude-l2",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
        ),
        Method(
            "magnitude-l1",
            "Weight magnitude (L1), the same share of each layer; no data.",
            "magnitude-l1",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
        ),
        Method(
            "random",
            "A seeded draw, the same share of each layer: what others must beat.",
            "random",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
        ),
    )
}
