"""Reading image files: PNG and its kind, DICOM, NIfTI, and the dictionary transforms around them."""
