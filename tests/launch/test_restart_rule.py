"""Restarts after faults: the decision after each attempt, from all attempts so far."""

import pytest

from lucid.launch.restart_rule import AttemptEnd, GiveUp, Restart, RestartPolicy, decide

ALONE = RestartPolicy(restarts=5, ranks=4, min_ranks=4, backoff=2)
THREE_HOSTS = RestartPolicy(restarts=5, ranks=12, min_ranks=4, backoff=2, room={"a": 4, "b": 4, "c": 4})


def shares(global_batch):
    """The function `ranks_that_serve` of settings under which ranks share a global batch evenly."""
    return lambda most: max((ranks for ranks in range(1, most + 1) if global_batch % ranks == 0), default=0)


def failures(*steps, exit_code=9, hosts=()):
    return [AttemptEnd(exit_code, step, hosts) for step in steps]


@pytest.mark.parametrize("exit_code", [1, 9, 75, 86, 255, -9])
def test_a_fault_and_a_stop_that_saved_are_followed_by_a_restart(exit_code):
    decision = decide(ALONE, failures(40, exit_code=exit_code), shares(12))
    assert isinstance(decision, Restart)
    assert (decision.ranks, decision.hosts, decision.wait) == (4, (), 2)


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (
            AttemptEnd(9, 1240),
            "failed with exit code 9, newest checkpoint: step 1,240; restart 1 of 5 in 2 s with 4 ranks",
        ),
        (
            AttemptEnd(75, 40),
            "stopped and saved with exit code 75, newest checkpoint: step 40; restart 1 of 5 in 2 s with 4 ranks",
        ),
        (
            AttemptEnd(-9, 0),
            "the launcher was killed by SIGKILL, newest checkpoint: none; restart 1 of 5 in 2 s with 4 ranks",
        ),
    ],
)
def test_a_restart_is_one_line(attempt, sentence):
    assert decide(ALONE, [attempt], shares(12)).sentence == sentence


def test_waits_double_up_to_a_minute():
    policy = RestartPolicy(restarts=2000, ranks=1, min_ranks=1, backoff=2)
    waits = [decide(policy, failures(*range(1, count + 1)), shares(12)).wait for count in (1, 2, 3, 5, 6, 7, 2000)]
    assert waits == [2, 4, 8, 32, 60, 60, 60]


def test_it_gives_up_after_the_allowed_number_of_restarts():
    policy = RestartPolicy(restarts=2, ranks=4, min_ranks=4, backoff=2)
    assert isinstance(decide(policy, failures(10, 20), shares(12)), Restart)
    decision = decide(policy, failures(10, 20, 30), shares(12))
    assert decision == GiveUp(
        "failed with exit code 9, newest checkpoint: step 30; gives up after 3 starts, as --restarts is 2"
    )


@pytest.mark.parametrize("exit_code", [9, 75])
@pytest.mark.parametrize(("steps", "newest"), [((0, 0), "none"), ((20, 40, 40), "step 40"), ((40, 20), "step 20")])
def test_it_gives_up_without_a_newer_checkpoint_between_two_failures(steps, newest, exit_code):
    decision = decide(ALONE, failures(*steps, exit_code=exit_code), shares(12))
    assert isinstance(decision, GiveUp)
    assert f"with exit code {exit_code}, newest checkpoint: {newest}; gives up after {len(steps)} starts" in (
        decision.sentence
    )
    assert "the last of which brought no newer checkpoint" in decision.sentence


def test_a_lost_host_means_fewer_ranks():
    decision = decide(THREE_HOSTS, failures(40, hosts=("a", "c")), shares(96))
    assert isinstance(decision, Restart)
    assert (decision.ranks, decision.hosts) == (8, ("a", "c"))
    assert decision.sentence.endswith("restart 1 of 5 in 2 s with 8 ranks on 2 hosts (b did not answer)")


def test_the_ranks_are_as_many_as_the_settings_allow():
    assert decide(THREE_HOSTS, failures(40, hosts=("a", "c")), shares(36)).ranks == 6
    power_of_two = decide(THREE_HOSTS, failures(40, hosts=("a",)), lambda most: 1 << most.bit_length() - 1)
    assert power_of_two.ranks == 4


def test_hosts_keep_the_ranks_that_they_have_room_for():
    policy = RestartPolicy(restarts=1, ranks=6, min_ranks=1, backoff=2, room={"a": 1, "b": 3, "c": 2})
    assert decide(policy, failures(40, hosts=("a", "b")), shares(12)).ranks == 4
    assert decide(policy, failures(40, hosts=("a", "c")), shares(12)).ranks == 3


def test_a_host_that_answers_again_is_used_again():
    attempts = [*failures(20, hosts=("a", "c")), *failures(40, hosts=("a", "b", "c"))]
    decision = decide(THREE_HOSTS, attempts, shares(96))
    assert (decision.ranks, decision.hosts) == (12, ("a", "b", "c"))
    assert decision.sentence.endswith("with 12 ranks on 3 hosts")


@pytest.mark.parametrize(
    ("hosts", "global_batch", "room"),
    [
        (("c",), 97, "1 rank on 1 host (a, b did not answer)"),
        ((), 96, "0 ranks on 0 hosts (a, b, c did not answer)"),
    ],
)
def test_it_gives_up_if_the_hosts_have_room_for_too_few_ranks(hosts, global_batch, room):
    decision = decide(THREE_HOSTS, failures(40, hosts=hosts), shares(global_batch))
    assert isinstance(decision, GiveUp)
    assert decision.sentence.endswith(f"gives up after 1 start: {room}, and --min-ranks is 4")


def test_all_ranks_are_kept_if_the_other_hosts_have_room_for_them():
    policy = RestartPolicy(restarts=1, ranks=4, min_ranks=4, backoff=2, room={"a": 2, "b": 2, "c": 2})
    assert decide(policy, failures(40, hosts=("a", "b")), shares(12)).ranks == 4
