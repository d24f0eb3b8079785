"""The version of lucid. CHANGELOG.md says what belongs to it."""

__version__ = "0.1.0"
