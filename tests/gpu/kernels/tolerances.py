"""On which shapes, and how closely, the CUDA kernels have to agree with the reference in double precision.

Their tests run on a GPU, if there is one, and in the emulation. The emulation finds errors in the arithmetic, the
geometry and the arguments, but not a GPU's own approximations, or races between threads.
"""

# Widths for wide and for single accesses, and for one warp or several per row; rows for one block and for several.
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 1, 64), (2, 35, 33), (1, 66, 768)]
# Relative to the largest number, in spacings: float32 sums many numbers, bfloat16 is rounded a few times.
TOLERANCES = {"float32": 64, "bfloat16": 2}
