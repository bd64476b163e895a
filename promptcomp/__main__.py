"""`python -m promptcomp`: the same program as the `promptcomp` command (distributed launchers start it this way)."""

from promptcomp.cli import main

if __name__ == "__main__":
    main()
