"""Presets, defaults and hierarchies: JSON only, read through `hssl_nnunet.paths.plans_dir`."""
