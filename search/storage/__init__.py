"""The tables of a study: their form, and the folder they lie in."""
