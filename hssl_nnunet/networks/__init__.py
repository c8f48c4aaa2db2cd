"""Shared weights, topologies of nnU-Net networks, and the projection of one onto the other."""
