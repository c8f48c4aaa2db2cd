"""Hierarchical self-supervised pretraining for nnU-Net v2: many domains, one set of weights, any plan."""

__version__ = "0.1.0"
