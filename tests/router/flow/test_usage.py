"""Who has had more than the others of late."""

from penstock.router.flow.tenants import Tenant
from penstock.router.flow.usage import Usage

A, B, C, BIG = Tenant(name="a"), Tenant(name="b"), Tenant(name="c"), Tenant(name="big", weight=4)


def test_a_tenant_alone_is_never_heavy() -> None:
    usage = Usage()
    for second in range(100):
        usage.add(A, 1000, second)
        assert not usage.is_heavy(A, times=1.25)


def test_heavy_is_a_quarter_more_than_others_had() -> None:
    usage = Usage()
    for tenant, work in ((A, 100), (B, 100), (C, 120)):
        usage.add(tenant, work, 0)
    assert not any(usage.is_heavy(tenant, times=1.25) for tenant in (A, B, C))
    usage.add(C, 10, 0)
    assert [usage.is_heavy(tenant, times=1.25) for tenant in (A, B, C)] == [False, False, True]


def test_weight_is_a_right_to_more() -> None:
    usage = Usage()
    usage.add(A, 100, 0)
    usage.add(BIG, 480, 0)
    assert not usage.is_heavy(BIG, times=1.25)
    usage.add(BIG, 40, 0)
    assert usage.is_heavy(BIG, times=1.25)


def test_old_work_fades_and_who_has_gone_does_not_count() -> None:
    usage = Usage()
    usage.add(A, 1000, 0)
    usage.add(B, 10, 0)
    assert usage.is_heavy(A, times=1.25)
    for second in range(1, 50):
        usage.add(B, 10, second)
    assert not usage.is_heavy(A, times=1.25)
    usage.add(B, 1e6, 70)
    assert not usage.is_heavy(B, times=1.25), "a was last seen more than a minute ago"


def test_it_goes_on_for_years() -> None:
    usage = Usage()
    for second in range(0, 10**8, 99_999):
        usage.add(A, 100, second)
        usage.add(B, 300, second)
        assert [usage.is_heavy(tenant, times=2.0) for tenant in (A, B)] == [False, True]
    for second in range(10**8, 10**8 + 5000):
        usage.add(A, 300, second)
        usage.add(B, 100, second)
    assert [usage.is_heavy(tenant, times=2.0) for tenant in (A, B)] == [True, False]
