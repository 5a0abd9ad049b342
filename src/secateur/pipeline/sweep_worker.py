"""A process that makes one share of a sweep: `python -m secateur.pipeline.sweep_worker`.

The share comes as a line of JSON on standard input; each event goes as one to what standard output
was. What libraries print goes to standard error. When standard input ends, the process that asked
is gone, and so is this one.
"""

import json
import os
import signal
import sys
import threading
import warnings

from .sweep_share import Event, Share, make_share


def main() -> None:
    """Make the share that standard input has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked is interrupted, and ends this
    warnings.simplefilter("ignore")
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    share = Share.of(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_who_asked, daemon=True).start()

    def tell(event: Event) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    make_share(share, tell)


def _end_with_who_asked() -> None:
    """End this process when standard input does: past Python, whose lock would stop its end."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
