"""Benchmarks: figures for documents and for comparing versions on one machine; `make bench` runs them."""
