"""How tests start ranks."""

# One thread a rank: the ranks of a test share few cores.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

# Arguments of Python for `lucid train` on a rank.
TRAIN = ("-m", "mpi4py", "-m", "lucid", "train")
