"""Metrics of generated images and of reconstructions."""
