"""Weights files: plain tensors, their checksums, and what they say about themselves."""
