"""Finding objects in images: the finder, and the detectors and segmenters behind it."""
