"""A local web service and its pages: sample, edit and compare images in a browser (extra ``studio``)."""
