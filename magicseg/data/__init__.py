"""Labelled data sets and training data: benchmark protocols, readers, sampler, augmentation, loader."""
