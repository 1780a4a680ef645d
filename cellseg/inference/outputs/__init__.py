"""Cells as files of other tools: label images, outlines, tables and pictures."""
