"""Finds ranks that fail, hang or compute differently, and ends all ranks."""
