"""What only demonstrates: phantoms, what is measured of them, and ``medfusion demo``."""
