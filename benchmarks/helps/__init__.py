"""Whether generated images help a classifier: the parts of ``does_it_help.py``."""
