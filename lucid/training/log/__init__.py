"""The log of a run: what it measures between two lines, the files that it writes, and what a terminal shows."""
