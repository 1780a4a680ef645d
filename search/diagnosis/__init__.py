"""The findings of the command ``doctor`` about an installation, a machine, a cluster and data."""
