"""A pool of ranks for tests: one mpiexec that stays up, and runs one job after the other on its first ranks.

A process that imports lucid takes seconds; a job in the pool takes what it does. `RankPool` is the tests' side,
`rank.py` what each rank runs, `state.py` what a job may change of its process and is put back, `fixtures.py` what tests
ask for. A test that is about how processes start or die starts its own, with the fixture `run_ranks`.
"""
