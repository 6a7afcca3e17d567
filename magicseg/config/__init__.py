"""The settings of a run: one file per group, below everything that uses them."""
