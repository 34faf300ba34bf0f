"""Reading image files (PNG, JPEG, TIFF, WebP, DICOM, NIfTI), and dictionary transforms for it."""
