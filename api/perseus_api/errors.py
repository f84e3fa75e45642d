"""The errors that documents raise. Their texts are read by people: they name the place and the remedy."""

from __future__ import annotations


class DocumentError(ValueError):
    """A profile, frontier or plan that must not be used; one sentence that names the field and the fix."""
