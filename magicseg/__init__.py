"""magicseg: class labels to a pixel-labelled synthetic data set, a trained segmentation model, a measured score."""

from importlib.metadata import version

__version__ = version("magicseg")
