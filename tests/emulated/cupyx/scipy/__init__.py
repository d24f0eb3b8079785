"""What lucid uses of SciPy for CuPy's arrays."""
