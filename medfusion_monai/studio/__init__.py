"""``medfusion studio``: sample, edit and judge images in a browser on this machine."""
