"""Proof against vanilla nnU-Net at few labels: splits, arms, jobs, metrics, statistics, one page."""
