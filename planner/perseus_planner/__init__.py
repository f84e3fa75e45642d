"""Placeholder docstring, replaced by the part's first commit."""
