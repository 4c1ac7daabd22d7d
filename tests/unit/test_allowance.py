"""How often one sender may cause something, with time passed in."""

from broker.allowance import Allowance


def test_so_many_in_a_while_and_then_again() -> None:
    """Each sender for itself; what was refused is counted."""
    now = 0.0
    allowance = Allowance(2, 10.0, lambda: now)
    assert [allowance.take("a") for _ in range(4)] == [True, True, False, False]
    assert allowance.num_refused("a") == 2
    assert allowance.take("b")
    now = 9.9
    assert not allowance.take("a")
    now = 10.0
    assert allowance.take("a")
    assert allowance.num_refused("a") == 0


def test_how_long_until_one_is_left_is_known() -> None:
    """Before one is taken; whoever has none is not counted again for asking."""
    now = 100.0
    allowance = Allowance(2, 10.0, lambda: now)
    allowance.take("a")
    assert allowance.seconds_until_left("a") == 0
    allowance.take("a")
    now = 103.0
    assert (allowance.seconds_until_left("a"), allowance.seconds_until_left("b")) == (7.0, 0.0)
    now = 110.0
    assert allowance.seconds_until_left("a") == 0


def test_of_many_senders_the_last_ones_are_counted() -> None:
    """However many there are they fill no memory; one that goes on is not forgotten for those that came once."""
    allowance = Allowance(1, 10.0, lambda: 0.0, most_senders=3)
    allowance.take("a")
    for number in range(1000):
        allowance.take(str(number))
        allowance.take("a")
    assert len(allowance._taken) == 3
    assert allowance.num_refused("a") == 1000
