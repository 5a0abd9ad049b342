"""Recoveries one after the other, as one rank of several.

    torchrun --nproc-per-node 3 many_trainings.py CALLS.json

Each call is a list: the model, the folder for the outcome, the step before which all ranks break
off (or null), and settings. Ranks but the first have another folder for it, where nothing is to be.
"""

import json
import os
import sys
from pathlib import Path

import torch

import secateur
from breaking_off import Cut
from secateur.launched import launched
from secateur.ranks.group import joined
from secateur.recovery import saving

torch.set_num_threads(1)
saving._FREE = float("inf")  # a state is kept after every check
rank = int(os.environ["RANK"])
with joined(launched()):
    for model, out, cut, settings in json.loads(Path(sys.argv[1]).read_text()):
        place = Path(out) if rank == 0 else Path(out).parent / f"rank-{rank}" / Path(out).name
        try:
            done = secateur.recover(model, out=place, progress=cut and Cut(cut), **settings)
        except KeyboardInterrupt:
            assert cut, "this one goes to its end"
            continue
        said = place.with_suffix(".json") if rank == 0 else Path(f"{out}-{rank}.json")
        said.write_text(json.dumps(done.numbers["checks"]))
os._exit(0)  # as the command does: threads of the group may be there still
