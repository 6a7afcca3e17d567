"""Helpers for tests of several folders: small runs, tiny models in real formats, fake services."""
