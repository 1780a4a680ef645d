"""What speaks against a trial that loses its processes, and what against a machine."""

from search.cluster.losses import MAX_LOSSES, NODE_LOSSES, Losses

ALIVE = {"a", "b", "c"}


def test_losses_without_progress_speak_against_a_trial():
    losses = Losses()
    for count in range(1, MAX_LOSSES + 1):
        losses.lost(7, "a")
        assert losses.against(7, ALIVE) == count


def test_an_epoch_clears_a_trial():
    losses = Losses()
    losses.lost(7, "a")
    losses.lost(7, "b")
    losses.progressed(7, "c")
    losses.lost(7, "a")
    assert losses.against(7, ALIVE) == 1
    assert losses.nodes_of(7) == {"a"}


def test_the_death_of_a_machine_speaks_against_no_trial_also_if_it_is_noticed_late():
    losses = Losses()
    for _ in range(10):
        losses.lost(7, "gone")
    assert losses.against(7, ALIVE | {"gone"}) == 10, "a machine that has died looks alive for some seconds"
    losses.lost(7, "gone too")
    assert losses.against(7, ALIVE) == 0


def test_a_machine_that_kills_one_trial_after_the_other_is_suspect_and_its_losses_count_no_more():
    losses = Losses()
    for trial in range(NODE_LOSSES):
        assert not losses.is_suspect("a")
        losses.lost(trial, "a")
    assert losses.is_suspect("a")
    assert losses.trials_on("a") == set(range(NODE_LOSSES))
    losses.bad_nodes.add("a")
    assert losses.against(0, ALIVE) == 0


def test_a_trial_that_kills_its_processes_makes_no_machine_suspect():
    losses = Losses()
    for _ in range(NODE_LOSSES + 5):
        losses.lost(7, "a")
    assert not losses.is_suspect("a")


def test_an_epoch_of_any_trial_clears_its_machine():
    losses = Losses()
    for trial in range(NODE_LOSSES - 1):
        losses.lost(trial, "a")
    losses.progressed(99, "a")
    losses.lost(5, "a")
    assert not losses.is_suspect("a")


def test_an_unknown_machine_is_never_suspect_but_its_losses_count():
    losses = Losses()
    for trial in (1, 2, 3, 3, 3):
        losses.lost(trial, "")
    assert not losses.is_suspect("")
    assert losses.against(3, ALIVE) == 3
    assert losses.nodes_of(3) == set()


def test_an_ended_trial_is_forgotten():
    losses = Losses()
    losses.lost(7, "a")
    losses.ended(7)
    assert losses.against(7, ALIVE) == 0
