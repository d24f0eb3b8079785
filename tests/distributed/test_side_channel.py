"""Short messages between ranks get through beside the collectives, from another thread."""

import threading

import pytest

from lucid.distributed.communicators.communicator import LONGEST_MESSAGE
from lucid.distributed.communicators.single import SingleCommunicator


@pytest.fixture
def channel(communicator):
    channel = communicator.side_channel()
    yield channel
    communicator.barrier()
    channel.close()


def received(channel, count):
    """The next `count` messages, by their senders."""
    messages = {}
    while len(messages) < count:
        arrival = channel.receive()
        if arrival is not None:
            messages[arrival[0]] = arrival[1]
    return messages


def text(sender, receiver):
    """What `sender` writes to `receiver`: of another length each time, and once as long as may be."""
    return (f"{sender} to {receiver} " * 2000).encode()[: LONGEST_MESSAGE - sender]


def test_alone_there_is_no_channel():
    assert SingleCommunicator().side_channel() is None


@pytest.mark.mpi(min_size=2)
def test_every_rank_hears_from_every_other(communicator, channel):
    others = [rank for rank in range(communicator.size) if rank != communicator.rank]
    for peer in others:
        channel.send(text(communicator.rank, peer), peer)
    assert received(channel, len(others)) == {peer: text(peer, communicator.rank) for peer in others}


@pytest.mark.mpi(min_size=2)
def test_a_message_gets_through_while_the_main_thread_waits(communicator, channel):
    """The first rank enters the barrier when all others have answered, whose main threads are in it by then."""
    heard = {}

    def answer():
        heard.update(received(channel, 1))
        channel.send(b"answer", 0)

    if communicator.rank > 0:
        thread = threading.Thread(target=answer)
        thread.start()
        communicator.barrier()
        thread.join()
        assert heard == {0: b"question"}
        return
    others = range(1, communicator.size)
    for peer in others:
        channel.send(b"question", peer)
    assert received(channel, len(others)) == dict.fromkeys(others, b"answer")
    communicator.barrier()
