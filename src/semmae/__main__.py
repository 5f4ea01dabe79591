"""`python -m semmae`, where the command itself is not on the path."""

from semmae.cli import main

if __name__ == "__main__":
    main()
