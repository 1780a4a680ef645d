"""Proposals of configs."""
