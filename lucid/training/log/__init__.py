"""The log of a run: what is measured between two of its lines, and the files that it writes."""
