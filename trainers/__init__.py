"""Trainer classes for nnU-Net's own finder; found by path through `hssl_nnunet.paths.trainers_dir`."""
