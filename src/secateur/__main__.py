"""`python -m secateur` is the same as `secateur`."""

from .cli import main

if __name__ == "__main__":
    main()
