"""Pairs of images to class maps."""
