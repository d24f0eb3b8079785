"""Checkpoints: what one holds, the folder that has those of a run, and the thread that writes them."""
