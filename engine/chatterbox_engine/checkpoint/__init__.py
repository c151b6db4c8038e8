"""Checkpoints in the official layout: which files, which family, which sizes; and random ones for tests."""
