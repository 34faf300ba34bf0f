"""Evaluation: what is measured of a bundle's model, or of folders of images, and how it enters a report."""
