"""Datalists of folders, tables and public data sets: one file per source, and the splits they share."""
