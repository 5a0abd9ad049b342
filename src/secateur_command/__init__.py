"""The program `secateur`.

`import secateur` registers classes with transformers, which takes four seconds; it sees that this
module is what runs, and leaves that to the commands that need it. `secateur --help` is quick.
"""

import time

_STARTED = time.monotonic()


def main() -> None:
    """Run the command line and exit."""
    from secateur.cli import main as run

    run(started=_STARTED)
