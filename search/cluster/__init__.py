"""Everything that imports Ray, and nothing else does."""
