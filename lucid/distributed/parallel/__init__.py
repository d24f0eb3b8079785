"""Data parallelism: `naive.py` is the idea, `data_parallel.py` the real version.

`buckets.py` sums gradients while backward runs, `exact.py` sums them to the same bits on any number of ranks, and
`sharding.py` divides the optimizer's work among ranks.
"""
