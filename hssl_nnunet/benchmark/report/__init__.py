"""The page of a benchmark: one self-contained HTML file, the answer first."""
