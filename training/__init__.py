"""Training and evaluation of the miniature's learned models. The package `magicseg` does not import this folder."""
