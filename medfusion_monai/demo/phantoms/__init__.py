"""Phantoms: drawn images with known ground truth, and measurements of them."""
