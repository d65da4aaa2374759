"""One forward pass: hidden states of the whole micro-batch, the head only where a label is scored.

In a chat row perhaps one token in three is a target, and a small model keeps a fifth of its arithmetic in the
vocabulary head; so the head runs on the target positions alone, in chunks, with the softmax in float32. Where the
head is frozen the loss keeps, instead of the (targets, vocabulary) matrix, the gradient of each target's loss with
respect to its hidden state, (targets, width): the backward pass is then a scaling of rows.

`Network` hides the three kinds of model. Whether its plain head equals the model's own (some architectures scale
or cap their logits) is checked on the loaded model, not assumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint

from foretune.catalogue.models import ModelKind
from foretune.data.update import MicroBatch, chunks
from foretune.errors import ModelError
from foretune.models.kinds import DROPOUT_NAMES
from foretune.models.modules import backbone_of, first_position
from foretune.regularization.base import Forward
from foretune.training import agreement
from foretune.training.attention import (
    BIDIRECTIONAL,
    IMPLEMENTATION,
    PackedPlan,
    attention,
    documents_as_lines,
)
from foretune.training.divergence import divergence, symmetric_divergence
from foretune.training.prefix import FrozenPrefix, blocks_of

HEAD_CHUNK_TARGETS = 256
"""Targets per head pass: (256, 49,152) in float32 is 48 MiB."""
NORMALISED_TARGETS = 16
"""Targets whose softmax is summed at once on a processor: 3 MiB in float32. At 256 the passes over memory took four
times as long as at 16 (58 against 14 ms for 49,152 words)."""


def _normaliser(logits: torch.Tensor) -> torch.Tensor:
    """(targets, 1) float32: log Σ exp of (targets, vocabulary), on a processor in pieces that stay in its cache."""
    size = NORMALISED_TARGETS if logits.device.type == "cpu" else HEAD_CHUNK_TARGETS
    return torch.cat([logits[piece].float().logsumexp(-1, keepdim=True) for piece in chunks(len(logits), size)])


class _FrozenHeadLoss(torch.autograd.Function):
    """Negative log-likelihoods of labels under ``softmax(hidden @ weight.T + bias)`` with a frozen head."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        """hidden: (targets, width); weight: (vocabulary, width); labels: (targets,). Returns (targets,) float32."""
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if wanted else None
        for chunk in chunks(hidden.shape[0], HEAD_CHUNK_TARGETS):
            logits = nn.functional.linear(hidden[chunk], weight, bias)
            label = labels[chunk, None]
            normaliser = _normaliser(logits)
            losses[chunk] = (normaliser - logits.gather(-1, label).float()).squeeze(-1)
            if slopes is not None:
                probabilities = logits.float().sub_(normaliser).exp_()
                probabilities.scatter_add_(-1, label, torch.full_like(label, -1, dtype=torch.float32))
                slopes[chunk] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """gradients[0]: (targets,). Returns the gradient of ``hidden`` alone."""
        (slopes,) = ctx.saved_tensors
        return (slopes * gradients[0][:, None].to(slopes.dtype), None, None, None)


@dataclass(frozen=True)
class Scored:
    """The scored positions of one forward pass (the `Forward` that losses and regularizers see)."""

    hidden: torch.Tensor
    labels: torch.Tensor
    row: torch.Tensor
    network: Network

    def log_probs(self, chunk: slice) -> torch.Tensor:
        """(chunk, vocabulary or classes) float32 log-probabilities."""
        return log_softmax(self.network.logits(self.hidden[chunk]).float(), dim=-1)

    def nll(self) -> torch.Tensor:
        """(targets,) float32: cross entropy, or squared error for regression."""
        if self.labels.is_floating_point():
            return (self.hidden.squeeze(-1).float() - self.labels.float()) ** 2
        if self.network.head is None:
            return cross_entropy(self.hidden.float(), self.labels, reduction="none")
        if self.network.frozen_plain_head:
            head = self.network.head
            return _FrozenHeadLoss.apply(self.hidden, head.weight, head.bias, self.labels)  # type: ignore[no-any-return, no-untyped-call]
        pieces = [self._chunk_nll(chunk) for chunk in chunks(self.hidden.shape[0], HEAD_CHUNK_TARGETS)]
        return torch.cat(pieces) if pieces else self.hidden.new_zeros(0, dtype=torch.float32)

    def divergence_from(self, hidden: torch.Tensor) -> torch.Tensor:
        """(targets,) float32 KL(p ‖ own), with p the fixed distribution that ``hidden`` (targets, width) gives."""
        head = self.network.head if self.network.head is not None and self.network.frozen_plain_head else None
        return divergence(self.hidden, hidden.detach(), self.network.logits, head)

    def symmetric_divergence(self, other: Forward) -> torch.Tensor:
        """(targets,) float32 ½ KL(own ‖ other) + ½ KL(other ‖ own), with gradients to both."""
        head = self.network.head if self.network.head is not None and self.network.frozen_plain_head else None
        return symmetric_divergence(self.hidden, other.hidden, self.network.logits, head)

    def _chunk_nll(self, chunk: slice) -> torch.Tensor:
        def losses(hidden: torch.Tensor) -> torch.Tensor:
            return cross_entropy(self.network.logits(hidden).float(), self.labels[chunk], reduction="none")

        if torch.is_grad_enabled():
            return checkpoint(losses, self.hidden[chunk], use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return losses(self.hidden[chunk])


class Network:
    """A model as the loop sees it: micro-batch in, scored positions out."""

    def __init__(self, model: Any, kind: ModelKind, prefix: FrozenPrefix | None = None) -> None:
        """``model``: a transformers model, adapters already injected. Raises nothing; checks itself lazily.

        ``prefix``: the model's frozen lower part, whose hidden states are then kept and used where that is exact.
        """
        self.model = model
        self.kind: ModelKind = kind
        self.head: Any = model.get_output_embeddings() if kind != "encoder" else None
        self._plain_attention: str = model.config._attn_implementation
        self.training_attention: str | None = None
        self._plain_head: bool | None = None
        self._packs: bool | None = None
        self._prefix = prefix

    @property
    def frozen_plain_head(self) -> bool:
        """Whether the head is a linear layer without gradient that gives the model's own logits."""
        return not self.head.weight.requires_grad and type(self.head) is nn.Linear and self.plain_head

    @property
    def plain_head(self) -> bool:
        """Whether ``head(hidden)`` equals the model's own logits: by its configuration, and by trial on a few tokens.

        The trial alone would not do: a cap far above the logits of its tokens is lost in the rounding of bfloat16.
        """
        if self._plain_head is None:
            plain = self.kind == "causal" and not self._finishes
            self._plain_head = plain and agreement.of_logits(self, self.head)
        return self._plain_head

    @property
    def packs(self) -> bool:
        """Whether a packed stream gives this model the losses of separate rows, by trial."""
        if self._packs is None:
            self._packs = agreement.of_packing(self)
        return self._packs

    @property
    def noisy(self) -> bool:
        """Whether any dropout is active in training: the shared head would then share its noise as well."""
        config = self.model.config.get_text_config()
        rates = [getattr(config, name, 0.0) for name in DROPOUT_NAMES]
        rates += [module.p for module in self.model.modules() if isinstance(module, nn.Dropout)]
        return any(rates)

    @property
    def keeps_states(self) -> bool:
        """Whether hidden states below the adapted layers are kept and used again (`training.prefix`)."""
        return self._prefix is not None

    @property
    def reads_tasks(self) -> bool:
        """Whether an adapter in the model computes differently for each task (`methods.tuners.tasks`)."""
        return getattr(self.model, "foretune_tasks", None) is not None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(targets, vocabulary) from (targets, width); for classifiers the hidden states are the logits."""
        if self.head is None:
            return hidden
        logits = self.head(hidden)
        if self.kind == "seq2seq" and getattr(self.model, "final_logits_bias", None) is not None:
            logits = logits + self.model.final_logits_bias.reshape(-1).to(logits.dtype)
        return self._finish(logits)

    @property
    def _finishes(self) -> bool:
        """Whether `_finish` changes anything."""
        config = self.model.config.get_text_config()
        scales = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling")]
        capped = getattr(config, "final_logit_softcapping", None) is not None
        return capped or any(scale not in (None, 1.0) for scale in scales)

    def _finish(self, logits: torch.Tensor) -> torch.Tensor:
        """What architectures do to logits after the head: scaling and soft-capping, by their configuration."""
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (scaling := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / scaling
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @contextlib.contextmanager
    def mode(self, *, packing: bool, training: bool) -> Iterator[None]:
        """Inside, the model trains or evaluates, on packed or padded micro-batches."""
        was_training = self.model.training
        self.model.train(training)
        padded = self.training_attention if training and self.training_attention else self._plain_attention
        encoder = packing and self.kind == "encoder"
        packed = BIDIRECTIONAL if encoder else IMPLEMENTATION
        blocks = blocks_of(self.model) if encoder else None
        try:
            with (
                attention(self.model, packed if packing else padded),
                documents_as_lines(blocks[-1]) if blocks else contextlib.nullcontext(),
            ):
                yield
        finally:
            self.model.train(was_training)

    @contextlib.contextmanager
    def answering_for(self, task: int | None) -> Iterator[None]:
        """Inside, the model answers for the task of that number (None: its default), where its adapter reads tasks."""
        if not self.reads_tasks:
            yield
            return
        tasks = self.model.foretune_tasks
        before, tasks.ids = tasks.ids, None if task is None else torch.tensor([task], device=self.model.device)
        try:
            yield
        finally:
            tasks.ids = before

    def run(self, batch: MicroBatch) -> Scored:
        """The forward pass of one micro-batch.

        The tasks of its rows stay set until the next pass: gradient checkpointing runs layers again while going back.
        """
        if self.reads_tasks:
            self.model.foretune_tasks.ids = batch.tasks
        if self.kind == "encoder":
            logits = self._class_logits(batch)
            return Scored(logits.index_select(0, batch.target_index), batch.labels, batch.row, self)
        prefix = self._usable_prefix(batch) if self.kind == "causal" else None
        with contextlib.nullcontext() if prefix is None else prefix.starting_from(prefix.states(batch)):
            hidden = self.hidden(batch)
        return Scored(_at_targets(hidden, batch), batch.labels, batch.row, self)

    def run_behind(self, batch: MicroBatch, before: Mapping[str, Any]) -> Scored:
        """The forward pass of rows that continue what a cache holds.

        ``before`` goes to the backbone: the cache and, for padded rows, the attention mask over cache and rows.
        """
        given = dict(before)
        mask = given.pop("attention_mask", None)
        if batch.layout is not None:
            given["packed_plan"] = PackedPlan.of(batch.layout, batch.ids.device)
        hidden = self._hidden(batch.ids, mask, batch.positions, **given)
        return Scored(_at_targets(hidden, batch), batch.labels, batch.row, self)

    def scores(self, batch: MicroBatch) -> torch.Tensor:
        """(targets, vocabulary or classes): logits at the scored positions, without what a training pass sets up."""
        if self.kind == "encoder":
            return self._class_logits(batch).index_select(0, batch.target_index)
        return self.logits(_at_targets(self.hidden(batch), batch))

    def hidden(self, batch: MicroBatch) -> torch.Tensor:
        """(batch, time, width) of a language model: of a packed or padded micro-batch, or of the decoder."""
        if self.kind == "seq2seq":
            return self._seq2seq_hidden(batch)
        if batch.layout is None:
            return self._hidden(batch.ids, batch.attention_mask, batch.positions)
        plan = PackedPlan.of(batch.layout, batch.ids.device)
        return self._hidden(batch.ids, None, batch.positions, packed_plan=plan)

    def _class_logits(self, batch: MicroBatch) -> torch.Tensor:
        """(documents, classes) of an encoder."""
        given = {} if batch.types is None else {"token_type_ids": batch.types}
        if batch.layout is None:
            return self.model(input_ids=batch.ids, attention_mask=batch.attention_mask, **given).logits  # type: ignore[no-any-return]
        plan = PackedPlan.of(batch.layout, batch.ids.device)
        positions = batch.positions + first_position(self.model)
        return self.model(input_ids=batch.ids, position_ids=positions, packed_plan=plan, **given).logits  # type: ignore[no-any-return]

    def _usable_prefix(self, batch: MicroBatch) -> FrozenPrefix | None:
        """The frozen lower part, where its kept states may stand for it in this pass (by trial, once)."""
        prefix = self._prefix
        if prefix is None or not prefix.usable():
            return None
        name = f"{prefix.identity}/{'padded' if batch.layout is None else 'packed'}"
        if name not in prefix.store.verdicts:
            prefix.store.verdicts[name] = agreement.of_prefix(self, prefix, packing=batch.layout is not None)
        return prefix if prefix.store.verdicts[name] else None

    def _hidden(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, **extra: Any
    ) -> torch.Tensor:
        backbone = backbone_of(self.model)
        extra.setdefault("use_cache", False)
        output = backbone(input_ids=ids, attention_mask=mask, position_ids=positions, **extra)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _seq2seq_hidden(self, batch: MicroBatch) -> torch.Tensor:
        mask = batch.attention_mask
        source = self.model.get_encoder()(input_ids=batch.ids, attention_mask=mask).last_hidden_state
        output = self.model.get_decoder()(
            input_ids=batch.decoder_ids, encoder_hidden_states=source, encoder_attention_mask=mask, use_cache=False
        )
        hidden: torch.Tensor = output.last_hidden_state
        if getattr(self.model.config, "scale_decoder_outputs", False):
            hidden = hidden * self.model.config.d_model**-0.5
        return hidden

    def verify(self) -> None:
        """Check that hidden states and `logits` give the model's own logits; raises `ModelError` where not."""
        if self.kind != "encoder" and not agreement.of_logits(self, self.logits):
            raise ModelError(
                f"the logits of {type(self.model).__name__} are not its head applied to its last hidden state.",
                remedy="This architecture is not supported; please report it with the model's name.",
            )


def _at_targets(hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """(targets, width) from (batch, time, width): the states whose next token is scored."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.target_index)


def on_device(batch: MicroBatch, model: Any) -> MicroBatch:
    """The micro-batch where the model is."""
    return batch if batch.ids.device == model.device else batch.to(model.device)
