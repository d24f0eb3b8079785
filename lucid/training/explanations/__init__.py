"""Explains a run by its loss curve: rules over its log, its settings and its corpora."""
