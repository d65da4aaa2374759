"""The selector language: an expression that picks parameters of a model by what they are for.

    bias                              every bias
    norm | bias                       layer norms, and all biases
    cross_attention & !bias           the weights of cross-attention
    last:2 & (attention | mlp)        attention and feed-forward of the last two layers of every stack
    decoder & layers>=3               the decoder from its fourth layer on
    attention.q | attention.v         by role (`foretune.models.modules`)
    /layers\\.\\d+\\.mlp/               a regular expression, searched in the parameter's name

``!`` binds tighter than ``&``, and ``&`` tighter than ``|``. Layers count from 0 within their stack. ``weight``,
``bias``, ``all``, ``encoder`` and ``decoder`` are words too. A tied output layer is the embedding: transformers lists
it once, under the embedding's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from foretune.errors import UsageError
from foretune.models.modules import GROUPS, ModuleRole, layer_counts, roles

if TYPE_CHECKING:
    from torch import nn

_TOKEN = re.compile(r"\s*(?:(/(?:\\.|[^/\\])*/)|([()&|!])|([A-Za-z_][\w.]*(?:\s*(?:>=|<=|==|>|<|:)\s*\d+)?))")
_COMPARISON = re.compile(r"(\w+)\s*(>=|<=|==|>|<|:)\s*(\d+)")
_ROLE = re.compile(r"(?:attention|cross_attention)\.(?:q|k|v|o|qkv|kv)|mlp\.(?:gate|up|down|gate_up)")
_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    ">=": lambda layer, k: layer >= k,
    "<=": lambda layer, k: layer <= k,
    "==": lambda layer, k: layer == k,
    ">": lambda layer, k: layer > k,
    "<": lambda layer, k: layer < k,
}
_WORDS = ("all", "bias", "weight", "encoder", "decoder", *GROUPS)


@dataclass(frozen=True)
class Parameter:
    """What a predicate sees of one parameter."""

    name: str
    module: ModuleRole
    layers: int
    """Number of layers of its stack; 0 outside the layers."""


Predicate = Callable[[Parameter], bool]


def parse(expression: str) -> Predicate:
    """The predicate of an expression; raises `UsageError` with the position of what cannot be read."""
    return _Parser(expression).whole()


def select(model: nn.Module, expression: str) -> list[str]:
    """Names of the parameters of ``model`` that ``expression`` picks, in the model's order.

    Raises `UsageError` for an expression that cannot be read or that picks nothing.
    """
    predicate = parse(expression)
    found = {role.name: role for role in roles(model)}
    counts = layer_counts(list(found.values()))
    chosen = []
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        module = found.get(owner) or ModuleRole(owner, "other", None, "")
        layers = counts.get(module.stack, 0) if module.layer is not None else 0
        if predicate(Parameter(name, module, layers)):
            chosen.append(name)
    if not chosen:
        raise UsageError(
            f"the selector {expression!r} picks no parameter of this model.",
            remedy=f"The model has {', '.join(sorted({role.role for role in found.values()}))}.",
        )
    return chosen


def select_modules(found: Sequence[ModuleRole], expression: str) -> list[ModuleRole]:
    """The modules whose weight ``expression`` picks, in the given order; ``all`` gives every one.

    Needs names only, so it serves a model's shapes as well as the model. Raises `UsageError` as `select` does.
    """
    predicate = parse(expression)
    counts = layer_counts(list(found))
    chosen = [
        module
        for module in found
        if predicate(
            Parameter(f"{module.name}.weight", module, counts.get(module.stack, 0) if module.layer is not None else 0)
        )
    ]
    if not chosen:
        raise UsageError(
            f"the selector {expression!r} picks none of the {len(found)} layers there are.",
            remedy=f"They are {', '.join(sorted({module.role for module in found})) or 'none'}.",
        )
    return chosen


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, expression: str) -> None:
        self.text = expression
        self.tokens: list[tuple[str, int]] = []
        position = 0
        while expression[position:].strip():
            match = _TOKEN.match(expression, position)
            if match is None:
                self._refuse(expression[position:].strip(), position)
            token = match[0].strip()
            self.tokens.append((token, match.end() - len(token)))
            position = match.end()
        self.next = 0

    def _refuse(self, token: str, position: int) -> NoReturn:
        raise UsageError(
            f"the selector {self.text!r} cannot be read at character {position + 1} ({token or 'its end'!r}).",
            remedy=f"Use {', '.join(_WORDS)}, attention.q, layers>=k, last:k, first:k or /regex/ with & | ! ( ).",
        )

    def _peek(self) -> str:
        return self.tokens[self.next][0] if self.next < len(self.tokens) else ""

    def _take(self) -> tuple[str, int]:
        if self.next >= len(self.tokens):
            self._refuse("", len(self.text))
        self.next += 1
        return self.tokens[self.next - 1]

    def whole(self) -> Predicate:
        """The predicate of the whole expression."""
        predicate = self._either()
        if self.next < len(self.tokens):
            self._refuse(*self.tokens[self.next])
        return predicate

    def _either(self) -> Predicate:
        parts = [self._both()]
        while self._peek() == "|":
            self._take()
            parts.append(self._both())
        return lambda parameter: any(part(parameter) for part in parts)

    def _both(self) -> Predicate:
        parts = [self._negated()]
        while self._peek() == "&":
            self._take()
            parts.append(self._negated())
        return lambda parameter: all(part(parameter) for part in parts)

    def _negated(self) -> Predicate:
        token, position = self._take()
        if token == "!":
            inner = self._negated()
            return lambda parameter: not inner(parameter)
        if token == "(":
            inner = self._either()
            closing, at = self._take()
            if closing != ")":
                self._refuse(closing, at)
            return inner
        return self._atom(token, position)

    def _atom(self, token: str, position: int) -> Predicate:
        if token.startswith("/"):
            try:
                pattern = re.compile(token[1:-1].replace("\\/", "/"))
            except re.error as error:
                self._refuse(f"{token}: {error}", position)
            return lambda parameter: pattern.search(parameter.name) is not None
        comparison = _COMPARISON.fullmatch(token)
        if comparison is not None:
            return self._layers(comparison, token, position)
        if token == "all":
            return lambda parameter: True
        if token in ("bias", "weight"):
            return lambda parameter: parameter.name.rpartition(".")[2] == token
        if token in ("encoder", "decoder"):
            return lambda parameter: parameter.module.stack == token
        if token in GROUPS or _ROLE.fullmatch(token):
            return lambda parameter: parameter.module.belongs(token)
        self._refuse(token, position)

    def _layers(self, comparison: re.Match[str], token: str, position: int) -> Predicate:
        word, sign, number = comparison[1], comparison[2], int(comparison[3])
        if word == "layers" and sign in _COMPARE:
            compare = _COMPARE[sign]
            return lambda parameter: parameter.module.layer is not None and compare(parameter.module.layer, number)
        if word == "last" and sign == ":":
            return lambda parameter: (
                parameter.module.layer is not None and parameter.module.layer >= parameter.layers - number
            )
        if word == "first" and sign == ":":
            return lambda parameter: parameter.module.layer is not None and parameter.module.layer < number
        self._refuse(token, position)
