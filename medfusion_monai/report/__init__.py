"""Summaries, tables and pictures of results."""
