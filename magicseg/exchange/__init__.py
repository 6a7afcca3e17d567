"""The data set as one file: HDF5 export and import."""
