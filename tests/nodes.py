"""Several nodes on one machine, without a network: the ranks act as if they were on different nodes."""

from lucid.distributed.communicators.mpi import MPICommunicator


class SeveralNodes(MPICommunicator):
    """Two of four ranks are a node; with fewer ranks, each rank is one."""

    def _ranks_of_this_node(self):
        return self._ranks.Split(self.rank // (2 if self.size == 4 else 1), self.rank)
