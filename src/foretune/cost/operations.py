"""How much arithmetic a step takes: operations per token, forward and backward, for adapters and for full tuning.

A multiplication with its addition counts as two operations (Kaplan et al. 2020, table 1). A matrix of P weights
costs 2P forward per token; backward costs 2P for the gradient of its input and, only where it is trained, 2P for
its own. With adapters the frozen matrices therefore cost 4P instead of 6P. Attention scores and their sum cost
4 · width per key that a query sees. The language-model head runs at target positions only, and it is frozen.
Norms and activations are not counted: they are memory traffic, which the machine's rate contains.

Packed rows of a causal model share their common head (the constant part of a chat template), which is then computed
once for a micro-batch: `head_copies` says how often a row pays for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from foretune.cost.shapes import CROSS, ModelShapes

_MULTIPLY_ADD = 2.0  # operations for one weight and one token
_SCORES_AND_SUM = 2  # attention multiplies by the keys, then by the values
_CAUSAL_SHARE = 0.5  # a query sees half of the document on average
_UNPACKED = frozenset({"gemma2"})  # caps its attention scores, so its rows are padded instead


@dataclass(frozen=True)
class RowTokens:
    """The mean row of a data set, in tokens."""

    prompt: float
    """Everything that is not scored, the chat template included"""
    answer: float
    """Scored tokens; for labelled rows 1"""
    mean_square: float
    """The mean of the squared row length: what attention costs follow"""
    longest: int
    """The longest row"""
    head: float = 0.0
    """Tokens that all rows begin with and none is scored on: what a packed micro-batch computes once"""
    exact: bool = True
    """Whether a tokenizer counted; otherwise estimated from characters"""

    @property
    def total(self) -> float:
        """Tokens of the mean row."""
        return self.prompt + self.answer

    @property
    def own(self) -> float:
        """Tokens of the mean row behind the shared head."""
        return self.total - self.head

    @property
    def padded(self) -> float:
        """Tokens of the mean row in a padded batch: the mean length of a neighbour, which grows with their spread."""
        return max(self.total, self.mean_square / max(self.total, 1.0))

    def computed(self, copies: float) -> float:
        """Tokens of the mean row that are computed when it pays for ``copies`` of the shared head (at most 1)."""
        return self.own + copies * self.head


@dataclass(frozen=True)
class Operations:
    """Operations for one row."""

    forward: float
    backward: float

    @property
    def training(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def packs(shapes: ModelShapes) -> bool:
    """Whether rows are packed into one stream; others are padded to the length of their neighbours."""
    return shapes.kind != "seq2seq" and shapes.architecture not in _UNPACKED


def shares_head(shapes: ModelShapes, *, noisy: bool) -> bool:
    """Whether packed rows compute their common head once: causal models, and no dropout (``noisy``) that it shared."""
    return shapes.kind == "causal" and packs(shapes) and not noisy


def rows_per_micro_batch(row: RowTokens, rows: float, limit_tokens: int, *, shared: bool) -> float:
    """Mean rows that share a micro-batch when ``rows`` are laid out in at most ``limit_tokens`` tokens each."""
    head, own = (row.head, row.own) if shared else (0.0, row.total)
    most = max(1.0, (limit_tokens - head) // max(own, 1.0))
    return rows / max(1.0, -(-rows // most))


def head_copies(row: RowTokens, rows: float, limit_tokens: int, *, shared: bool) -> float:
    """How many times a row pays for the shared head: 1 where every row computes its own, less where they share it."""
    return 1.0 / rows_per_micro_batch(row, rows, limit_tokens, shared=True) if shared else 1.0


def _stack_weights(shapes: ModelShapes) -> tuple[float, float, float]:
    """Weights that every encoder token, every decoder token, and every encoder token for cross-attention pass."""
    encoder, decoder, memory = 0.0, float(shapes.routed_weights), 0.0
    for linear in shapes.linears:
        if linear.role in (CROSS + "key", CROSS + "value"):
            memory += linear.weights
        elif linear.stack == "encoder":
            encoder += linear.weights
        else:
            decoder += linear.weights
    return encoder, decoder, memory


def _linear_and_attention(shapes: ModelShapes, row: RowTokens, copies: float) -> tuple[float, float]:
    """(operations in matrices of the layers, operations in attention) for one row, forward."""
    encoder, decoder, memory = _stack_weights(shapes)
    keys = _MULTIPLY_ADD * _SCORES_AND_SUM * shapes.heads * shapes.head_dim
    if shapes.kind == "seq2seq":
        linear = (encoder + memory) * row.prompt + decoder * row.answer
        pairs = shapes.encoder_layers * row.prompt**2
        pairs += shapes.layers * (row.answer**2 * _CAUSAL_SHARE + row.prompt * row.answer)
        return _MULTIPLY_ADD * linear, keys * pairs
    share = _CAUSAL_SHARE if shapes.kind == "causal" else 1.0
    pairs = share * (row.mean_square - (1 - copies) * row.head**2)
    tokens = row.computed(copies) if packs(shapes) else row.padded
    return _MULTIPLY_ADD * (encoder + decoder) * tokens, keys * shapes.layers * pairs


def head_operations(shapes: ModelShapes, targets: float) -> float:
    """Forward operations of the output head at ``targets`` positions; an encoder's classifier is not counted."""
    return 0.0 if shapes.kind == "encoder" else _MULTIPLY_ADD * shapes.width * shapes.vocabulary * targets


def row_operations(
    shapes: ModelShapes,
    row: RowTokens,
    *,
    trainable: int,
    full: bool = False,
    checkpointing: bool = False,
    copies: float = 1.0,
) -> Operations:
    """Operations of one row of training, which pays for ``copies`` of the shared head.

    ``trainable`` counts the adapter's parameters (ignored when ``full``), each of which is taken to act once per
    token. ``checkpointing`` runs the layers forward a second time.
    """
    linear, attention = _linear_and_attention(shapes, row, copies)
    head = head_operations(shapes, row.answer)
    adapter = 0.0 if full else _MULTIPLY_ADD * trainable * row.computed(copies)
    forward = linear + attention + head + adapter
    own_gradients = linear + head if full else adapter
    backward = linear + 2 * attention + head + adapter + own_gradients
    if checkpointing:
        backward += linear + attention + adapter
    return Operations(forward, backward)


def scoring_operations(shapes: ModelShapes, row: RowTokens, *, copies: float = 1.0) -> float:
    """Operations to score one row: a forward pass with the head at its targets."""
    linear, attention = _linear_and_attention(shapes, row, copies)
    return linear + attention + head_operations(shapes, row.answer)


def decoding_operations(shapes: ModelShapes) -> float:
    """Operations to generate one token after the prompt was read: every decoder matrix and the head once."""
    _, decoder, _ = _stack_weights(shapes)
    return _MULTIPLY_ADD * decoder + head_operations(shapes, 1.0)
