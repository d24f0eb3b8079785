"""What lucid uses of CuPy's companion."""
