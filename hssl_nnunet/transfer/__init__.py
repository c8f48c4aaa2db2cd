"""Weights files, seeding of a target's plans, export to stock nnU-Net."""
