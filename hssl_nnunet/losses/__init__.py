"""The four terms of the hierarchical loss, one file each."""
