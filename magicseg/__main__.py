"""``python -m magicseg``, and so ``torchrun -m magicseg train RUN``."""

from magicseg.core.safe_path import forget_present_folder

forget_present_folder()  # before anything else is imported

from magicseg.cli import main  # noqa: E402

if __name__ == "__main__":  # reader processes import this module again
    main()
