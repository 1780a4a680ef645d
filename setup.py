"""The list of packages, which pyproject.toml cannot give: those that are found, and the space files as package data."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["cellseg*", "search*"]), "search.spaces"])
