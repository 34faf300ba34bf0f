"""Which recipe of phase two gives the best images for equal compute: the parts of ``quality_study.py``."""
