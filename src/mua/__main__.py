"""`python -m mua` is `mua`."""

from .cli import main

if __name__ == "__main__":
    main()
