"""The open-vocabulary segmentation model: encoders, deep visual prompts, mask decoder, losses.

Importing this package loads no torch; its modules do.
"""
