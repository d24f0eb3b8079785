"""Short messages between ranks arrive during collectives, from another thread."""

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
    """The next `count` messages by sender."""
    messages = {}
    while len(messages) < count:
        arrival = channel.receive()
        if arrival is not None:
            messages[arrival[0]] = arrival[1]
    return messages


def text(sender, receiver):
    """The message from `sender` to `receiver`: lengths differ, and one is the longest allowed."""
    return (f"{sender} to {receiver} " * 2000).encode()[: LONGEST_MESSAGE - sender]


def test_a_single_rank_has_no_channel():
    assert SingleCommunicator().side_channel() is None


@pytest.mark.mpi(min_size=2)
def test_every_rank_hears_from_every_other(communicator, channel):
    others = [rank for rank in range(communicator.size) if rank != communicator.rank]
    for peer in others:
        channel.send(text(communicator.rank, peer), peer)
    assert received(channel, len(others)) == {peer: text(peer, communicator.rank) for peer in others}


@pytest.mark.mpi(min_size=2)
def test_a_message_arrives_while_the_main_thread_waits(communicator, channel):
    """The first rank enters the barrier last: after all others, whose main threads are in it, have answered."""
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


@pytest.mark.mpi(min_size=2)
def test_no_send_is_under_way_when_a_channel_has_closed(communicator):
    """No rank receives before it closes, and MPI does not take so many long messages by itself."""
    channel = communicator.side_channel()
    for _ in range(50):
        channel.send(bytes(LONGEST_MESSAGE), (communicator.rank + 1) % communicator.size)
    channel.close()
    assert channel._sending == []
