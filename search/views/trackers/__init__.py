"""Copies of a study in other tools' own forms, kept up to date while it runs."""
