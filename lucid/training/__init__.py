"""Runs: their settings, the loop, checkpoints, metrics and evaluation."""
