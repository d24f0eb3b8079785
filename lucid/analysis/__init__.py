"""Analysis of runs: plots, and where the time of a step goes."""
