"""What others do, as policies behind the same protocol: simulator and benchmarks compare with them.

Each is written anew from the published description that it names, with the published defaults. All are given more than
their originals have: exact knowledge of every cache, and figures of load that are milliseconds old.
"""

from collections.abc import Callable

from penstock.router.baselines.dynamo import DynamoCost
from penstock.router.baselines.least_loaded import LeastLoaded
from penstock.router.baselines.llm_d import AffinityFilter, WeightedScorers
from penstock.router.baselines.mooncake import MooncakeAlgorithm1
from penstock.router.baselines.preble import PrebleE2
from penstock.router.baselines.random_of_two import RandomOfTwo
from penstock.router.baselines.round_robin import RoundRobin
from penstock.router.baselines.sglang import CacheAware
from penstock.router.policy import Policy

BASELINES: dict[str, Callable[[int], Policy]] = {
    "round robin": lambda _: RoundRobin(),
    "least loaded": lambda _: LeastLoaded(),
    "random of two": RandomOfTwo,
    "Dynamo cost": lambda _: DynamoCost(),
    "SGLang cache-aware": CacheAware,
    "llm-d scorers": lambda _: WeightedScorers(),
    "llm-d affinity": lambda _: AffinityFilter(),
    "Mooncake Algorithm 1": lambda _: MooncakeAlgorithm1(),
    "Preble E2": lambda _: PrebleE2(),
}
"""Per name, what makes one from a seed."""
