"""Files, locks, errors, seeds, processes, precision and memory; independent of any model."""
