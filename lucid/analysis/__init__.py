"""Looks at runs: their logs, samples, curves and reports, the parts of a step's time, and predictions."""
