"""Whether an object still says what the operator applied. Pure: decides between an API write and none."""

import re
from decimal import Decimal
from typing import Any

_KEYS = ("uid", "mountPath", "name", "port", "key")
_UNITS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)([KMGTPE]i|[numkMGTPE]?)")
_OF_QUANTITIES = {"limits", "requests", "sizeLimit", "divisor"}
"""Fields whose values are quantities; elsewhere "1e3" is not "1k": it may be a hash."""
_ATOMIC = {"selector", "podSelector", "nodeSelector", "ingress", "rules", "roleRef", "subjects", "tolerations"}
"""Fields that have one owner as a whole (atomic, in Kubernetes' words): one entry more in a Service's selector, a
policy's rules or a binding's subjects changes what the object means, so nothing in them is somebody else's."""


def covers(observed: Any, wanted: Any, *, whole: bool = False, quantities: bool = False) -> bool:
    """Whether all that is `wanted` is observed; what others added beside it is theirs, unless it is to be the `whole`.

    The API server leaves out what is empty and rewrites quantities; neither is a difference.
    """
    if isinstance(wanted, dict):
        if not isinstance(observed, dict):
            return not wanted and observed is None
        if whole and any(value not in (None, "", [], {}) for key, value in observed.items() if key not in wanted):
            return False
        return all(
            covers(
                observed.get(key),
                value,
                whole=whole or key in _ATOMIC,
                quantities=quantities or key in _OF_QUANTITIES,
            )
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return _covers_list(observed, wanted, whole)
    if observed == wanted:
        return True
    if observed is None:
        return wanted in ("", 0, False)
    return quantities and _same_quantity(str(observed), str(wanted))


def _covers_list(observed: Any, wanted: list[Any], whole: bool) -> bool:
    if observed is None:
        return not wanted
    if not isinstance(observed, list):
        return False
    if len(observed) == len(wanted) and all(covers(*pair, whole=whole) for pair in zip(observed, wanted, strict=True)):
        return True
    if whole:
        return False
    key = next((key for key in _KEYS if all(isinstance(item, dict) and key in item for item in wanted)), None)
    if key is None or not wanted:
        return False
    by_key = {item.get(key): item for item in observed if isinstance(item, dict)}
    return all(covers(by_key.get(item[key]), item) for item in wanted)


def _same_quantity(left: str, right: str) -> bool:
    amounts = _amount(left), _amount(right)
    return amounts[0] is not None and amounts[0] == amounts[1]


def _amount(text: str) -> Decimal | None:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number = Decimal(match[1])
    return number * 2 ** _BINARY[match[2]] if match[2] in _BINARY else number * Decimal(10) ** _UNITS[match[2]]
