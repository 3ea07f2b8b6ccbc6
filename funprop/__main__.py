"""`python -m funprop` is the `funprop` command."""

from funprop.cli import main

if __name__ == "__main__":
    main()
