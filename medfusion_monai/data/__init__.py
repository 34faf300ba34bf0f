"""Data: the datalist, reading image files, preparing data sets, and the data of a training."""
