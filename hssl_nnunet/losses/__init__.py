"""The five terms of the hierarchical loss, of images, places and labels."""
