"""What a loss curve says of its run, in words: each finding with its evidence and with what to try next.

The rules are functions of the log, the settings and the corpora alone, so a finished run, a running one and a copy of
its folder give the same findings. Their thresholds come from short runs of small models with and without planted
faults (docs/loss-curves.md).
"""
