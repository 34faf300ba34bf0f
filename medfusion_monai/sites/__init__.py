"""Samples of several sites: the package that a site shares, and one datalist of several packages."""
