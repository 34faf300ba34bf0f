"""Measures of how good generated images are."""
