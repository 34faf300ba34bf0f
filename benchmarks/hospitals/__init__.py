"""What hospitals reach alone and together: the parts of ``federated_study.py``."""
