"""Sampling over domains, crops, views and augmentation."""
