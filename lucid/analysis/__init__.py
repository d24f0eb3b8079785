"""Looks at runs: their logs, samples, curves and reports, where the time of a step goes, and what lies ahead."""
