"""The command line: flags become settings, settings one call, the result a table or JSON."""

from .main import main

__all__ = ["main"]
