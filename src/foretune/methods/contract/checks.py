"""The points of the contract. Each takes a `Case`, a method freshly attached, and raises `Broken` with what is wrong.

What a method's traits promise is checked; where they promise less, the refusal must be clear: a `UsageError`, with
nothing changed. Tolerances: float32 sums differ by their order, bfloat16 weights by a rounding each.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foretune.catalogue.methods import Declaration, resolve
from foretune.errors import ForetuneError, ModelError, UsageError
from foretune.methods.attachment import adapter_tensors, load_adapter
from foretune.methods.base import Method
from foretune.methods.contract.models import Specimen
from foretune.methods.trainable import count, countable
from foretune.seeding import torch_generator

MERGE_TOLERANCE = 2e-6
"""Largest difference of merged and unmerged float32 logits, relative to the largest logit."""
DOUBLE_TOLERANCE = 5e-7
"""The same over a float64 base, where only the adapter's own float32 rounds."""
MOST_ROUNDING = 4e-6
"""What float32 may differ by where the float64 base shows that it is rounding."""
BFLOAT16_KL = 0.02
"""Largest mean KL divergence of merged from unmerged in bfloat16, in nats a position, at random weights."""
NOISE = 0.05
"""Standard deviation of what is added to every trainable tensor to stand for training."""


class Broken(AssertionError):
    """A point of the contract is not kept."""


@dataclass
class Case:
    """A method on a specimen."""

    method: Method
    declared: Declaration
    specimen: Specimen
    config: Mapping[str, Any]
    seed: int = 5

    @contextmanager
    def attached(self, *, trained: bool, model: Any = None, seed: int | None = None) -> Iterator[Any]:
        """The attachment; with noise on its weights when ``trained``."""
        base = self.specimen.model if model is None else model
        generator = torch_generator(self.seed if seed is None else seed, "init")
        attachment = self.method.attach(base, self.config, generator=generator)
        try:
            if trained:
                disturb(attachment)
            yield attachment
        finally:
            attachment.detach()

    def logits(self, attachment: Any) -> torch.Tensor:
        """What the attached model answers."""
        return self.specimen.logits(attachment.model)


def case(method: Method, declared: Declaration, specimen: Specimen) -> Case:
    """The method with its example settings on ``specimen``."""
    example = {f"{declared.name}.{key}": value for key, value in declared.example.items()}
    return Case(method, declared, specimen, resolve({"method": declared.name, **example}))


def disturb(attachment: Any, seed: int = 0) -> None:
    """Add seeded noise to every trainable tensor, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in attachment.parameter_groups(1.0):
            for weight in group["params"]:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_((NOISE * noise).to(weight.dtype))


def _same(one: torch.Tensor, other: torch.Tensor, what: str, tolerance: float = 0.0) -> None:
    scale = max(1.0, float(other.abs().max()))
    difference = float((one.double() - other.double()).abs().max())
    if not difference <= tolerance * scale:
        raise Broken(f"{what}: logits differ by {difference:.3g}")


def identity_at_init(case: Case, attachment: Any) -> None:
    """A fresh adapter leaves the base's answers, where the traits say so."""
    if case.declared.traits.identity_at_init:
        _same(case.logits(attachment), case.specimen.answers, "a fresh adapter changes the answers", MERGE_TOLERANCE)


def gradients(case: Case, attachment: Any) -> None:
    """Only the adapter (and a classifier's new head) is trained, and every part of it can be."""
    groups = attachment.parameter_groups(1.0)
    ours = {id(weight) for group in groups for weight in group["params"]}
    names = [name for group in groups for name in group["names"]]
    weights = [weight for group in groups for weight in group["params"]]
    torch.autograd.backward(case.specimen.loss(attachment.model))
    idle = [name for name, weight in zip(names, weights, strict=True) if weight.grad is None]
    if idle:
        raise Broken(f"{len(idle)} trainable tensors get no gradient, first {idle[0]}")
    for name, weight in attachment.model.named_parameters():
        if weight.requires_grad and id(weight) not in ours:
            raise Broken(f"{name} asks for a gradient and is in no group")
        weight.grad = None


def counted(case: Case, attachment: Any) -> None:
    """The closed form gives the number of trainable parameters, a classifier's new head left out."""
    if not countable(case.declared):
        return
    named = [
        (name, weight)
        for group in attachment.parameter_groups(1.0)
        for name, weight in zip(group["names"], group["params"], strict=True)
    ]
    head = _new_head(case, [name for name, _ in named])
    real = sum(weight.numel() for name, weight in named if name not in head)
    said = count(case.specimen.shapes, case.config)
    if case.declared.family == "whole":
        said = sum(weight.numel() for name, weight in case.specimen.model.named_parameters()) - _head_size(case)
    if real != said:
        raise Broken(f"the closed form gives {said:,} trainable parameters, and there are {real:,}")


def _new_head(case: Case, names: list[str]) -> set[str]:
    if case.specimen.kind != "encoder":
        return set()
    return {name for name in names if "classifier" in name.split(".") or "score" in name.split(".")}


def _head_size(case: Case) -> int:
    if case.specimen.kind != "encoder":
        return 0
    head: int = sum(weight.numel() for weight in case.specimen.model.classifier.parameters())
    return head


def deterministic(case: Case) -> None:
    """The same seed gives the same weights, and the global random state is left alone."""
    before = torch.get_rng_state()
    with case.attached(trained=False) as attachment:
        first = attachment.state()
    if not torch.equal(before, torch.get_rng_state()):
        raise Broken("attaching moves torch's global random state")
    with case.attached(trained=False) as attachment:
        again = attachment.state()
    if set(first) != set(again) or any(not torch.equal(first[name], again[name]) for name in first):
        raise Broken("the same seed gives other weights")


def has_effect(case: Case, attachment: Any) -> None:
    """A trained adapter changes the answers."""
    if torch.equal(case.logits(attachment), case.specimen.answers):
        raise Broken("a trained adapter changes nothing")


def saved(case: Case, attachment: Any) -> None:
    """What is saved and loaded over a fresh base holds the same tensors and answers the same.

    Bitwise for our tuners; peft's LoRA is trained on the fused path, whose sums have another order.
    """
    with tempfile.TemporaryDirectory() as name:
        expected = case.logits(attachment)
        attachment.save(Path(name))
        if not (Path(name) / "adapter_config.json").is_file():
            loaded = type(case.specimen.model).from_pretrained(name).eval()
            _same(case.specimen.logits(loaded), expected, "the model loaded again answers differently")
            return
        loaded = load_adapter(case.specimen.twin(), Path(name)).eval()
        tensors, state = adapter_tensors(loaded), attachment.state()
        if set(tensors) != set(state) or any(not torch.equal(tensors[key], state[key]) for key in state):
            raise Broken("the adapter loaded again holds other tensors")
        tolerance = 0.0 if _ours(attachment) else MERGE_TOLERANCE
        _same(case.specimen.logits(loaded), expected, "the adapter loaded again answers differently", tolerance)


def _ours(attachment: Any) -> bool:
    """Whether the adapter is a tuner of ours rather than one of peft's."""
    return str(attachment.peft_model.active_peft_config.peft_type).startswith("FORETUNE")


def refuses_mismatch(case: Case, attachment: Any) -> None:
    """A state with a missing, an extra or a misshapen tensor is refused with our error."""
    state = attachment.state()
    name = sorted(state)[0]
    missing = {key: value for key, value in state.items() if key != name}
    misshapen = {**state, name: torch.zeros((*state[name].shape, 2))}
    for what, wrong in (("missing", missing), ("extra", {**state, "odd": state[name]}), ("misshapen", misshapen)):
        try:
            attachment.load_state(wrong)
        except ModelError:
            continue
        raise Broken(f"a state with a {what} tensor is taken")
    attachment.load_state(state)
    now = attachment.state()
    if any(not torch.equal(value, now[key]) for key, value in state.items()):
        raise Broken("a state put back is another")


def disabled(case: Case, attachment: Any) -> None:
    """Switched off, the base answers bitwise; or switching off is refused."""
    trained = case.logits(attachment)
    if not case.declared.traits.disables_to_base:
        _refused(attachment.disabled, "switching off")
        return
    with attachment.disabled():
        inside = case.logits(attachment)
    _same(inside, case.specimen.answers, "switched off")
    _same(case.logits(attachment), trained, "switched on again")


def _or_rounding(check: Callable[[torch.dtype, float], None]) -> None:
    """``check`` in float32; where a processor rounds a little more, double precision has to agree as well."""
    try:
        check(torch.float32, MERGE_TOLERANCE)
    except Broken:
        check(torch.float64, DOUBLE_TOLERANCE)
        check(torch.float32, MOST_ROUNDING)


def merges(case: Case) -> None:
    """Merged equals unmerged, or merging is refused and nothing is changed."""
    _or_rounding(lambda dtype, tolerance: _merges(case, dtype, tolerance))


def _merges(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    twin = case.specimen.twin(dtype)
    with case.attached(trained=True, model=twin) as attachment:
        unmerged = case.specimen.logits(attachment.model)
        if case.declared.traits.merge in ("no", "approximate"):
            _refused(attachment.merge, "merging")
            _same(case.specimen.logits(attachment.model), unmerged, "a refused merge changes the answers")
            return
        merged = attachment.merge()
        _same(case.specimen.logits(merged), unmerged, "merged", tolerance)


def unmerges(case: Case) -> None:
    """Merging in place and taking it back leaves the answers; ours take it back bitwise."""
    if case.declared.traits.merge == "exact":
        _or_rounding(lambda dtype, tolerance: _unmerges(case, dtype, tolerance))


def _unmerges(case: Case, dtype: torch.dtype, allowed: float) -> None:
    with case.attached(trained=True, model=case.specimen.twin(dtype)) as attachment:
        peft_model = getattr(attachment, "peft_model", None)
        if peft_model is None:
            return
        unmerged = case.specimen.logits(attachment.model)
        peft_model.merge_adapter()
        _same(case.specimen.logits(attachment.model), unmerged, "merged in place", allowed)
        try:
            peft_model.unmerge_adapter()
        except NotImplementedError:  # OSF says so; merging a copy is still exact
            return
        tolerance = 0.0 if _ours(attachment) else allowed
        _same(case.specimen.logits(attachment.model), unmerged, "unmerged", tolerance)


def merges_in_bfloat16(case: Case) -> None:
    """Merging into bfloat16 weights costs little: one rounding of each weight."""
    if case.declared.traits.merge != "exact":
        return
    twin = case.specimen.twin(torch.bfloat16)
    with case.attached(trained=True, model=twin) as attachment:
        before = torch.log_softmax(case.specimen.logits(attachment.model).float(), -1)
        after = torch.log_softmax(case.specimen.logits(attachment.merge()).float(), -1)
        divergence = float((before.exp() * (before - after)).sum(-1).mean())
        if not divergence <= BFLOAT16_KL:
            raise Broken(f"merged in bfloat16: {divergence:.3g} nats a position from the unmerged answers")


def switches(case: Case, attachment: Any) -> None:
    """Two adapters on one base: switching gives each its own answers."""
    peft_model = getattr(attachment, "peft_model", None)
    if peft_model is None or not case.declared.switches:
        return
    first = case.logits(attachment)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed + 1)
        peft_model.add_adapter("other", copy.deepcopy(peft_model.active_peft_config))
    peft_model.set_adapter("other")
    peft_model.eval()
    with torch.no_grad():
        for weight in peft_model.parameters():
            if weight.requires_grad:
                weight.add_(2 * NOISE)
    if torch.equal(case.logits(attachment), first):
        raise Broken("a second adapter answers as the first")
    peft_model.set_adapter("default")
    _same(case.logits(attachment), first, "back at the first adapter")
    peft_model.delete_adapter("other")


def detaches(case: Case) -> None:
    """Detached, the base is bitwise as before: names, values and who asks for gradients."""
    model = case.specimen.model
    asked = {name: weight.requires_grad for name, weight in model.named_parameters()}
    with case.attached(trained=True):
        pass
    after = model.state_dict()
    if list(after) != list(case.specimen.before):
        odd = sorted(set(after) ^ set(case.specimen.before))
        raise Broken(f"the detached base has other tensors than before: {odd[:2]}")
    changed = [name for name, tensor in case.specimen.before.items() if not torch.equal(after[name], tensor)]
    if changed:
        raise Broken(f"the detached base is another: {changed[0]}")
    if asked != {name: weight.requires_grad for name, weight in model.named_parameters()}:
        raise Broken("the detached base asks for other gradients")
    if hasattr(model, "peft_config") or model.training:
        raise Broken("the detached base keeps traces of the adapter")


def _refused(act: Callable[[], Any], what: str) -> None:
    try:
        act()
    except UsageError:
        return
    except Exception as error:
        raise Broken(f"{what} fails with {type(error).__name__}: {error}") from error
    raise Broken(f"{what} is not refused, as the traits say it is")


AttachedCheck = Callable[[Case, Any], None]
Check = Callable[[Case], None]
FRESH: tuple[AttachedCheck, ...] = (identity_at_init, counted)
"""Points that look at one fresh attachment."""
TRAINED: tuple[AttachedCheck, ...] = (gradients, has_effect, disabled, saved, refuses_mismatch, switches)
"""Points that look at one attachment with noise on its weights, and leave it as it was."""
ALONE: tuple[Check, ...] = (deterministic, merges, unmerges, merges_in_bfloat16, detaches)
"""Points that attach and detach themselves."""


def broken_points(case: Case, more: tuple[Check, ...] = ()) -> dict[str, str]:
    """The points of the contract that are not kept, with what is wrong; empty when all are."""
    found: dict[str, str] = {}
    for trained, checks in ((False, FRESH), (True, TRAINED)):
        with _noting(found, "attach"), case.attached(trained=trained) as attachment:
            for check in checks:
                with _noting(found, check.__name__):
                    check(case, attachment)
    for alone in (*ALONE, *more):
        with _noting(found, alone.__name__):
            alone(case)
    return found


@contextmanager
def _noting(found: dict[str, str], point: str) -> Iterator[None]:
    """Whatever goes wrong inside is a finding: a method from outside may fail in any way."""
    try:
        yield
    except (Broken, ForetuneError) as error:
        found[point] = str(error)
    except Exception as error:
        found[point] = f"{type(error).__name__}: {error}"
