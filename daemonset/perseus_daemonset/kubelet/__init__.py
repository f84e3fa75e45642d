"""Stubs of the kubelet's PodResources interface, generated from the published definition by scripts/protos."""
