"""Pretraining and fine-tuning inside nnU-Net's own training loop."""
