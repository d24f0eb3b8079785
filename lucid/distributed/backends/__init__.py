"""The communicators: one process alone (`single`), or many over MPI (`mpi`)."""
