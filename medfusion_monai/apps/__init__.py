"""Apps for programs that users already work with."""
