"""Weights files: plain tensors, their checksums and their descriptions."""
