"""The version of lucid."""

__version__ = "0.1.0"
