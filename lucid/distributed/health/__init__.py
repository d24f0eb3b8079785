"""What finds a rank that failed, hangs or computes differently, and ends all ranks."""
