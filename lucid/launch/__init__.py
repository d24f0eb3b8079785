"""Starts the ranks of a run: `lucid launch`.

It needs the standard library only, so that it starts in milliseconds, and the rest of lucid imports it for what both
have to know: which cores a process may use, and the page on which a rank writes its status.
"""
