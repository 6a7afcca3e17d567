"""The data set on disk: Zarr arrays, their checks, and the ways in and out."""
