"""Several nodes on one machine, without a network: ranks that take themselves for those of other nodes."""

from lucid.distributed.communicators.mpi import MPICommunicator


class SeveralNodes(MPICommunicator):
    """Each two of four ranks, or each one of fewer, are a node."""

    def _ranks_of_this_node(self):
        return self._ranks.Split(self.rank // (2 if self.size == 4 else 1), self.rank)
