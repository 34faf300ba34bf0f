"""Evaluation of a bundle's model, or of folders of images, in a report."""
