"""The whole pipeline on generated phantoms."""
