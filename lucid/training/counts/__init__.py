"""Counts of tokens in the corpora of a run: the losses that they attain, text that repeats itself."""
