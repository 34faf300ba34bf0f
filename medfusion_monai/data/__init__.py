"""Data: the datalist; reading image files; preparing data sets; what a training reads."""
