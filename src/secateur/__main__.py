"""`python -m secateur` is the same as `secateur`."""

from secateur_command import main

if __name__ == "__main__":
    main()
