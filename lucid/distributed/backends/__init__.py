"""The communicators: one process alone (`single`), many over MPI (`mpi`), or those of one node (`shared_memory`)."""
