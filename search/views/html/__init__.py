"""The report of one or more studies as a single HTML file that needs no network."""
