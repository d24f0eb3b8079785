"""Starts the ranks of a run: `lucid launch`.

It uses the standard library only, and so starts in milliseconds. The rest of lucid imports from it what both sides
share: the cores that a process may use, and the page to which a rank writes its status.
"""
