"""Captions to pairs of images: with the object, and the same scene without it."""
