"""One worker without routers: what it says of its load, and how it ends."""

from penstock.simulator.call import Call, Node, Report
from penstock.simulator.clock import Clock
from penstock.simulator.trace import BLOCK_TOKENS, TraceRequest
from penstock.simulator.worker import Worker
from tests.simulator.small import KIND, trace


class Client:
    """Counts what comes."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.is_finished = False

    def first_token(self, cached_tokens: int) -> None:
        del cached_tokens
        self.num_tokens += 1

    def produced(self, count: int) -> None:
        self.num_tokens += count

    def finished(self) -> None:
        self.is_finished = True

    def lost(self, worker: Node) -> None:
        raise AssertionError(f"{worker.url} does not die here")


class Alone:
    """A decode worker, and what it reported."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reports: list[Report] = []
        self.worker = Worker("d0", KIND, self.clock, 1e-3, lambda _, report: self.reports.append(report))

    def ask(self, request: TraceRequest) -> Call:
        """As the request's time comes."""
        call = Call(request, request.prompt_tokens, Client(), self.worker)
        self.clock.at(request.arrival_s, lambda: self.worker.generate(call))
        return call


def test_a_prompt_that_is_preempted_half_way_is_counted_once() -> None:
    """KIND holds 100 blocks. The first answer soon needs a 51st, and the second prompt, which has the other 50, is only
    computed in part."""
    alone = Alone()
    requests = trace((0.0, 50 * BLOCK_TOKENS - 1, 200), (0.0, 50 * BLOCK_TOKENS, 3)).requests
    calls = [alone.ask(request) for request in requests]
    alone.clock.run()
    assert alone.worker.num_preemptions > 0
    assert [call.caller.num_tokens for call in calls] == [200, 3]  # type: ignore[attr-defined]
    most = sum(request.prompt_tokens + request.output_tokens for request in requests)
    assert max(report.load.prefill_tokens for report in alone.reports) <= most
    assert alone.worker.load().prefill_tokens == 0


def test_a_worker_may_die_in_the_step_of_a_stream_that_was_given_up() -> None:
    alone = Alone()
    given_up, other = [alone.ask(request) for request in trace((0.0, 100, 50), (0.0, 100, 50)).requests]
    alone.clock.at(0.3, lambda: alone.worker.abandon(given_up))
    alone.clock.at(0.305, lambda: alone.worker.stop())
    alone.clock.run()
    assert given_up.over
    assert other.over
    assert 0 < given_up.caller.num_tokens <= other.caller.num_tokens < 50  # type: ignore[attr-defined]
