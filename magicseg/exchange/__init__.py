"""Export the data set to one HDF5 file, and import it."""
