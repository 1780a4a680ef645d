"""Annotations of other tools: found in a folder, read, and written as a data set in the COCO layout."""
