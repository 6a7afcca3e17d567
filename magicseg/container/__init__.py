"""The Apptainer image: build it, start it, and test it without a cluster. Importing this package loads no torch."""
