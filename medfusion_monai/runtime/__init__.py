"""The ground floor: files, locks, errors, seeds, processes, precision, memory. Knows no model."""
