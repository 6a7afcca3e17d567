"""The embedded default: a small painter and what it needs to run the whole pipeline offline."""
