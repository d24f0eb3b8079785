"""Predictions for `lucid plan`: the time of a step and of a whole run on more nodes, from steps that were measured on a
few, and the loss at the end of a run that is under way.
"""
