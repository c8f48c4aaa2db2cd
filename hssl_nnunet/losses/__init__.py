"""The five terms of the hierarchical loss, one file each."""
