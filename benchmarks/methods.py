"""What each method costs: seconds and memory of a training step as ratios to peft's LoRA of rank 16, in one run.

    python benchmarks/methods.py [--quick] [--model NAME] [--methods lora …] [--equal] [--tokens 256] [--repeats 5]

Every method is attached in turn to one loaded model, with its default settings as one meets them (``--equal``: at about
the parameters of LoRA r = 16, or its nearest size), and runs the same tokens: a forward pass up to the last hidden
state and the backward pass of its mean square. The reference, peft's LoRA on peft's own path, is timed again beside
every method, in alternation, so that a busy machine disturbs both. Seconds are processor time; memory is what autograd
keeps for the backward pass, parameters left out. Methods that keep many copies of weights end alone where memory ends.

Keys of the summary: ``loratrf_step_ratio`` (LoRATRF with its gate over peft's LoRA at about the same parameters),
``shared_with_peft_max_ratio`` (the largest ratio, over methods of peft that are attached through our code, of a step
attached by us and by `peft.get_peft_model` alone), ``fused_lora_step_ratio`` (LoRA on the fused path over peft's).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common import finish, median, model_folder, parser, record
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from foretune.catalogue.methods import METHODS, resolve
from foretune.cost.shapes import ModelShapes
from foretune.errors import ForetuneError
from foretune.methods.fused import fuse, unfuse
from foretune.methods.kept import saved_bytes
from foretune.methods.registry import get
from foretune.methods.share import Missed, size
from foretune.methods.trainable import count
from foretune.seeding import torch_generator

REFERENCE: Mapping[str, Any] = resolve({"method": "lora", "lora.rank": 16})
QUICK_METHODS = ("lora", "loratrf", "dora", "mora", "ia3")
SHARED = ("lora", "dora", "loha", "vera", "ia3")
"""Methods of peft whose step is compared with the same configuration attached by peft alone."""

MEMORY_SHARE = 0.8
"""Of the machine's memory that a method may take"""


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.add_argument("--methods", nargs="*", help="methods to time; all that fit a causal model when not given")
    made.add_argument("--equal", action="store_true", help="every method at about the parameters of LoRA r = 16")
    made.add_argument("--tokens", type=int, default=256)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = made.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.repeats = 64, 3
        arguments.methods = arguments.methods or list(QUICK_METHODS)
    return arguments


def step(model: Any, ids: torch.Tensor) -> float:
    """Processor seconds of a forward and a backward pass."""
    for weight in model.parameters():
        weight.grad = None
    started = time.process_time()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden.float().square().mean().backward()
    return time.process_time() - started


def compared(one: Callable[[], float], other: Callable[[], float], repeats: int) -> float:
    """The median ratio of two timed steps, taken in turns whose order alternates; the first pair warms up."""
    ratios = []
    for repeat in range(repeats + 1):
        taken = {}
        for name in ("one", "other") if repeat % 2 else ("other", "one"):
            taken[name] = one() if name == "one" else other()
        ratios.append(taken["one"] / taken["other"])
    return median(ratios[1:])


def configuration(name: str, shapes: ModelShapes, *, equal: bool) -> dict[str, Any]:
    """The default settings of a method, or those at about the parameters of the reference."""
    if not equal:
        return dict(resolve({"method": name}))
    share = count(shapes, REFERENCE) / shapes.parameters
    found = size(METHODS[name], shapes, share, {})
    if isinstance(found, Missed):
        return dict(resolve({"method": name, **(found.nearest.fields if found.nearest else {})}))
    return dict(resolve({"method": name, **found.settings}))


@contextlib.contextmanager
def attached(model: Any, config: Mapping[str, Any], seed: int) -> Any:
    """The attachment of a method with noise on what starts at zero."""
    attachment = get(str(config["method"])).attach(model, config, generator=torch_generator(seed, "init"))
    try:
        with torch.no_grad():
            for group in attachment.parameter_groups(1.0):
                for weight in group["params"]:
                    weight.add_(0.001 * torch.randn_like(weight))
        yield attachment
    finally:
        attachment.detach()


class Bench:
    """Two copies of one model: one for the method at hand, one that carries the reference all the time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        folder = model_folder(arguments.model)
        dtype = getattr(torch, arguments.dtype)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        self.shapes = ModelShapes.from_config(self.model.config.to_dict())
        other: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        generator = torch_generator(arguments.seed, "init")
        self.reference = get("lora").attach(other, REFERENCE, generator=generator)
        unfuse(self.reference.peft_model)
        draw = torch.Generator().manual_seed(arguments.seed)
        self.ids = torch.randint(0, self.model.config.vocab_size, (1, arguments.tokens), generator=draw)
        self.reference_bytes = saved_bytes(self.reference.model, self.ids)

    def _reference_step(self) -> float:
        return step(self.reference.model, self.ids)

    def measure(self, name: str, *, equal: bool) -> dict[str, Any]:
        """Ratios of one method to the reference."""
        config = configuration(name, self.shapes, equal=equal)
        with attached(self.model, config, self.arguments.seed) as attachment:
            model = attachment.model
            trained = sum(weight.numel() for group in attachment.parameter_groups(1.0) for weight in group["params"])
            return {
                "parameters": trained,
                "step_ratio": compared(lambda: step(model, self.ids), self._reference_step, self.arguments.repeats),
                "memory_ratio": saved_bytes(model, self.ids) / self.reference_bytes,
                "settings": {key: value for key, value in config.items() if key.startswith(f"{name}.")},
            }

    def measured_apart(self, name: str) -> dict[str, Any]:
        """`measure` in a process of its own, so that one that runs out of memory ends alone."""
        here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=self._tell, args=(name, there))
        child.start()
        there.close()
        try:
            found: dict[str, Any] = here.recv()
        except EOFError:
            found = {"failed": "its process was killed, as it is when memory runs out"}
        child.join()
        return found

    def _tell(self, name: str, there: Any) -> None:
        limit = int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            there.send(self.measure(name, equal=self.arguments.equal))
        except (ForetuneError, RuntimeError, MemoryError) as error:
            there.send({"failed": str(error).splitlines()[0]})

    def shared(self, name: str) -> float:
        """A step of a peft method attached by us over one attached by peft alone, on peft's own path."""
        config = configuration(name, self.shapes, equal=True)
        method: Any = get(name)
        base = copy.deepcopy(self.model)
        before = {id(buffer) for buffer in base.buffers()}
        plain = get_peft_model(base, method.build(method.request(base, config, self.arguments.seed)))
        added = [buffer for buffer in plain.buffers() if id(buffer) not in before]  # VeRA's frozen factors
        for tensor in (*plain.parameters(), *filter(torch.is_floating_point, added)):
            tensor.data = tensor.data.to(base.dtype)
        with attached(self.model, config, self.arguments.seed) as attachment:
            unfuse(attachment.peft_model)
            return compared(
                lambda: step(attachment.model, self.ids),
                lambda: step(plain.get_base_model(), self.ids),
                self.arguments.repeats,
            )

    def fused(self) -> float:
        """LoRA on the fused path over peft's own."""
        with attached(self.model, REFERENCE, self.arguments.seed) as attachment:
            fuse(attachment.peft_model)
            return compared(lambda: step(attachment.model, self.ids), self._reference_step, self.arguments.repeats)


def main() -> None:
    """Measure, print and write."""
    arguments = arguments_of()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    bench = Bench(arguments)
    chosen = arguments.methods or [name for name, item in METHODS.items() if "causal" in item.kinds]
    shared = {name: bench.shared(name) for name in SHARED[: 2 if arguments.quick else None]}
    measured: dict[str, Any] = {}
    for name in chosen:
        measured[name] = one = bench.measured_apart(name)
        said = one.get("failed") or f"step {one['step_ratio']:.2f}, memory {one['memory_ratio']:.2f}"
        print(f"{name}: {said}", file=sys.stderr, flush=True)
    loratrf = bench.measure("loratrf", equal=True)
    summary = {
        "loratrf_step_ratio": round(loratrf["step_ratio"], 3),
        "shared_with_peft_max_ratio": round(max(shared.values()), 3),
        "fused_lora_step_ratio": round(bench.fused(), 3),
    }
    finish(arguments, "methods", summary, {**record(arguments, model=arguments.model), "methods": measured,
                                           "shared": shared})  # fmt: skip


if __name__ == "__main__":
    main()
