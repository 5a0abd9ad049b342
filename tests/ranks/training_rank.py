"""`secateur recover` in a process of several that is killed, or that counts what it holds.

    torchrun --nproc-per-node 3 training_rank.py killed RANK STEP recover ...
    torchrun --nproc-per-node 3 training_rank.py counted FOLDER STEP recover ...

RANK is killed before step STEP (from 0). Counted are, after that step, the elements of the
parameters, gradients and moments that a rank has memory for; one file a rank in FOLDER. It has the
loss and the norm of the gradient of every step as well.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.recovery import Trainer, saving
from secateur_command import main

HOW, WHERE, STEP = sys.argv[1], sys.argv[2], int(sys.argv[3])
RANK = os.environ.get("RANK", "0")
plain = Trainer.step
# a state is kept after every check
saving._FREE = float("inf")


sums: list[tuple[float, float]] = []


def step(self: Any, number: int) -> None:
    """A step of the training, and what is done to this rank."""
    if HOW == "killed" and RANK == WHERE and number == STEP:
        os.kill(os.getpid(), signal.SIGKILL)
    own = self._together.step_sums
    self._together.step_sums = lambda losses: sums.append(own(losses)) or sums[-1]
    plain(self, number)
    self._together.step_sums = own
    if HOW == "counted" and number == STEP:
        said = json.dumps({**counted(self), "sums": sums})
        (Path(WHERE) / f"{RANK}.json").write_text(said)


def counted(trainer: Any) -> dict[str, int]:
    """Elements on this rank, by what they are; tensors that share memory count once."""
    moments = [one for state in trainer._optimizer.state.values() for one in state.values()]
    return {
        "parameters": elements(list(trainer._model.parameters())),
        "trained": elements(list(trainer.parameters)),
        "gradients": elements([one.grad for one in trainer.parameters if one.grad is not None]),
        "moments": elements([one for one in moments if one.ndim]),
        "best": elements(list(trainer._best.values())),
    }


def elements(tensors: list[Tensor]) -> int:
    """How many there is memory for."""
    owned = [one.to_local() if hasattr(one, "to_local") else one for one in tensors]
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() // one.itemsize
        for one in owned
        if one.untyped_storage().nbytes()
    }
    return sum(storages.values())


Trainer.step = step  # type: ignore[method-assign]
torch.set_num_threads(1)
sys.argv[1:] = sys.argv[4:]
main()
