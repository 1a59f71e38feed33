"""Who is refused, told the time: no event loop, no workers."""

import pytest

from penstock.errors import Overloaded, RateLimited
from penstock.router.flow.admission import Admission, Claim
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import FairQueue
from penstock.router.flow.patience import Patience
from penstock.router.flow.tenants import ANYONE, Tenant

A, B = Tenant(name="a"), Tenant(name="b")


def claim(tenant: Tenant = ANYONE, *, deadline: float = 600.0, body: bytes = b"") -> Claim:
    return Claim(Arrival("id", tenant, Patience(600, 600, 15), 0.0, body), 0, 100, deadline)


def after_ten_seconds_of_100_tokens_per_s(tenant: Tenant, waiting: int) -> Admission:
    """With so many requests of 100 tokens that still wait."""
    queue: FairQueue[None] = FairQueue()
    entries = [queue.push(tenant, None, 100) for _ in range(10 + waiting)]
    admission = Admission(queue, longest_wait_s=60)
    admission.speeds.waits(tenant, 0.0)
    for second, entry in enumerate(entries[:10]):
        queue.remove(entry)
        admission.speeds.left(tenant, 100, 1.0 + second)
    return admission


@pytest.mark.parametrize(("waiting", "compute_s", "is_refused"), [(4, 0.9, False), (4, 1.1, True), (6, 0.0, True)])
def test_who_waits_and_computes_longer_than_there_is_time_is_refused(
    waiting: int, compute_s: float, is_refused: bool
) -> None:
    admission = after_ten_seconds_of_100_tokens_per_s(ANYONE, waiting)
    hasty = claim(deadline=15.0)
    outlook = admission.outlook(hasty.arrival, 10.0)
    assert outlook.waiting == (100 * waiting, pytest.approx(waiting))
    if not is_refused:
        admission.check(outlook, hasty, compute_s, 10.0)
        return
    with pytest.raises(Overloaded, match="tokens of work are ahead") as caught:
        admission.check(outlook, hasty, compute_s, 10.0)
    assert caught.value.retry_after_s == pytest.approx(waiting + compute_s - 5)


def test_who_comes_back_as_told_is_let_in_and_nobody_else() -> None:
    admission = after_ten_seconds_of_100_tokens_per_s(ANYONE, 70)
    first, second = claim(body=b"first"), claim(body=b"second")
    with pytest.raises(Overloaded) as caught:
        admission.check(admission.outlook(first.arrival, 10.0), first, 0.0, 10.0)
    assert caught.value.retry_after_s == pytest.approx(10)
    with pytest.raises(Overloaded):
        admission.check(admission.outlook(second.arrival, 20.0), second, 0.0, 20.0)
    admission.check(admission.outlook(first.arrival, 20.0), first, 0.0, 20.0)
    assert first.arrival.came_back


def test_one_tenants_line_is_ahead_of_nobody_else() -> None:
    admission = after_ten_seconds_of_100_tokens_per_s(A, 70)
    other, greedy = claim(B), claim(A)
    assert admission.outlook(other.arrival, 10.0).waiting == (0, 0)
    with pytest.raises(RateLimited, match="a asks for more than its share"):
        admission.check(admission.outlook(greedy.arrival, 10.0), greedy, 0.0, 10.0)


def test_on_a_worker_too_a_tenant_that_has_had_more_goes_behind_others() -> None:
    assert claim(B).wire_priority(heavy=False) < claim(A).wire_priority(heavy=True)
    urgent = claim(Tenant(name="urgent", priority=-1)).wire_priority(heavy=True)
    assert urgent < claim(A).wire_priority(heavy=False), "a tenant's own priority counts first"
    assert claim().wire_priority(heavy=True) == 0, "without keys only requests have priorities"
