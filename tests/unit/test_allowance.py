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
