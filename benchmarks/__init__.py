"""Benchmarks: figures for documents and for comparing versions on one machine; never tests. ``make bench`` runs them."""
