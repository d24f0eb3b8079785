"""Data parallelism over a communicator: buckets of gradients, the exact reduction, and the sharded optimizer."""
