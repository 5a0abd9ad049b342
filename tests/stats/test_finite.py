"""What is not finite is told by the name under which it was seen, whatever it is."""

import pytest
import torch

from secateur.errors import SecateurError
from secateur.stats.finite import Finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_the_first_that_was_seen_is_told(place: int, bad: float, dtype: torch.dtype) -> None:
    good, spoilt = torch.randn(300).to(dtype), torch.randn(300).to(dtype)
    spoilt[place] = bad
    finite = Finite()
    for what, tensor in (("a", good), ("b", good), ("c", spoilt), ("b", spoilt), ("b", good)):
        finite.see(what, tensor)
    with pytest.raises(SecateurError, match=r"NaN or infinity in b, computed in \w+"):
        finite.check()
    finite.check()  # it was told once


def test_what_is_finite_or_empty_is_not_told() -> None:
    finite = Finite()
    finite.check()
    largest = torch.finfo(torch.bfloat16).max
    finite.see("a", torch.tensor([largest, -largest], dtype=torch.bfloat16))
    finite.see("an expert", torch.zeros(0, 3))
    finite.check()
