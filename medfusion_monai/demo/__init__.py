"""The demonstration: phantoms, measurements of them, and ``medfusion demo``."""
