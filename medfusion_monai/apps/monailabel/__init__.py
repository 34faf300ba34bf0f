"""The app for MONAI Label: ``main.py`` is what its server loads, ``label_server`` starts it."""
