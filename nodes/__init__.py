"""Thin V3 nodes: read the inputs, call one function, wrap the outputs."""
