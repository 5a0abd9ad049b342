"""`secateur` in a process of several, one of which falls: it is killed, or raises.

    torchrun --nproc-per-node 3 falling_rank.py HOW RANK LAYERS prune ...

HOW is `killed`, `interrupted`, `refused`, `broken`, `nan` or `elsewhere` (it goes another way),
after so many layers of its passes.
"""

import os
import signal
import sys

import torch

from secateur.checkpoint import Kept
from secateur.errors import SecateurError
from secateur.pipeline import keeping
from secateur.ranks import this
from secateur.stats import stream
from secateur_command import main

HOW, RANK, LAYERS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keeping.WORTH = 0.0
keep, hidden_of = Kept.layer, stream.hidden_of
done = [0]


def layer(self: Kept, *given: object) -> None:
    """The same, and then the end of this rank."""
    keep(self, *given)  # type: ignore[arg-type]
    done[0] += 1
    if done[0] == LAYERS:
        if HOW == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if HOW == "interrupted":
            os.kill(os.getpid(), signal.SIGTERM)
        if HOW == "refused":
            raise SecateurError("This is no good.\nType something else.")
        if HOW == "broken":
            raise RuntimeError("this is a bug")
        if HOW == "elsewhere":
            this().each("something else", 1)


def not_a_number(output: object) -> torch.Tensor:
    """Hidden states of a rank whose arithmetic fails."""
    states = hidden_of(output)
    return states * torch.nan if done[0] >= LAYERS else states


if int(os.environ["RANK"]) == RANK:
    if HOW == "nan":
        stream.hidden_of = not_a_number
    Kept.layer = layer  # type: ignore[method-assign]
sys.argv[1:] = sys.argv[4:]
main()
