"""Stubs of the kubelet's device plugin interface, generated from the published definition by scripts/protos."""
