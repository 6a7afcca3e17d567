"""``python -m magicseg``, and so ``torchrun -m magicseg train RUN``."""

from magicseg.cli import main

if __name__ == "__main__":  # reading processes import this module again
    main()
