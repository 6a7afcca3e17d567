"""The Apptainer image: building it, starting it, testing it without a cluster. Loads no torch."""
