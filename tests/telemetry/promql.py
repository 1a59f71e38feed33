"""The names in a PromQL expression: enough of a parser to find every metric, label and function, and to trip over the
rest (promtool, where it is installed, knows the whole language)."""

import re
from dataclasses import dataclass, field

FUNCTIONS = frozenset({"absent", "changes", "histogram_quantile", "increase", "rate"})
AGGREGATIONS = frozenset({"avg", "count", "max", "min", "sum"})
OPERATORS = frozenset({"and", "or", "unless"})
TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<range>\[\$?\w+\])
  | (?P<number>\d+(?:\.\d+)?)
  | (?P<name>[a-zA-Z_:][\w:]*)
  | (?P<symbol>=~|!~|!=|==|>=|<=|[-+*/%(){},=<>])
    )""",
    re.VERBOSE,
)


@dataclass
class Selector:
    """One metric and what its labels are compared with."""

    metric: str
    matchers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Label: (operator, value)."""


@dataclass
class Names:
    """All names of one expression."""

    selectors: list[Selector] = field(default_factory=list)
    grouping: set[str] = field(default_factory=set)
    """Labels in `by (...)` and `on (...)`."""


def names_in(expr: str) -> Names:
    """Raises ValueError for what is not understood."""
    tokens = _tokens(expr)
    names = Names()
    while tokens:
        kind, text = tokens.pop(0)
        if kind != "name" or text in OPERATORS:
            continue
        following = tokens[0][1] if tokens else ""
        if text in ("by", "on"):
            names.grouping |= _group(tokens)
        elif (text in AGGREGATIONS and following in ("(", "by")) or (text in FUNCTIONS and following == "("):
            continue
        elif following == "(":
            raise ValueError(f"unknown function {text!r} in {expr}")
        else:
            names.selectors.append(Selector(text, _matchers(tokens)))
    return names


def _tokens(expr: str) -> list[tuple[str, str]]:
    tokens, position, expr = [], 0, expr.strip()
    while position < len(expr):
        match = TOKEN.match(expr, position)
        if match is None:
            raise ValueError(f"not understood: {expr[position:]!r} in {expr}")
        tokens.append((str(match.lastgroup), match[match.lastgroup or 0]))
        position = match.end()
    if [text for _, text in tokens].count("(") != [text for _, text in tokens].count(")"):
        raise ValueError(f"unbalanced parentheses in {expr}")
    return tokens


def _group(tokens: list[tuple[str, str]]) -> set[str]:
    labels = set()
    assert tokens.pop(0)[1] == "("
    while (token := tokens.pop(0))[1] != ")":
        if token[0] == "name":
            labels.add(token[1])
    return labels


def _matchers(tokens: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    if not tokens or tokens[0][1] != "{":
        return found
    tokens.pop(0)
    while (token := tokens.pop(0))[1] != "}":
        if token[0] == "name":
            operator, (_, value) = tokens.pop(0)[1], tokens.pop(0)
            found[token[1]] = (operator, value.strip('"'))
    return found
