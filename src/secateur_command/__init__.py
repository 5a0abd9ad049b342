"""The program `secateur`.

`import secateur` registers classes with transformers, which takes four seconds; it sees that this
module is what runs, and leaves that to the commands that need it. `secateur --help` is quick.
"""

import os
import time

_STARTED = time.monotonic()


def main() -> None:
    """Run the command line and exit."""
    let_threads_sleep()
    from secateur.cli import main as run

    run(started=_STARTED)


def let_threads_sleep() -> None:
    """Let threads that wait for others sleep, unless the environment says what they do.

    They spin by default. Beside another busy process they then hold the core that the others need:
    a pass takes four times as long, and twice with threads that sleep. Read when torch comes in.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
