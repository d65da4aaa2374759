"""The facts about a machine that a forecast needs. `execution.machine` finds them out; here they are only values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foretune.files import fingerprint


@dataclass(frozen=True)
class Accelerator:
    """One GPU."""

    name: str
    memory_bytes: int
    free_bytes: int
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """A computer as this process may use it."""

    processor: str
    cores: int
    """Cores this process may run on: affinity and the container's quota included"""
    threads: int
    """Threads that numerical libraries will start: the cores, unless OMP_NUM_THREADS says fewer"""
    memory_bytes: int
    """Memory this process may use at most: the container's limit or the machine's"""
    available_bytes: int
    """What of it is free now"""
    bf16: bool
    """Whether the processor multiplies in bfloat16 (AVX-512 BF16, AMX or Arm BF16)"""
    accelerators: tuple[Accelerator, ...] = ()
    system: str = ""

    @property
    def device(self) -> str:
        """``cuda`` when there is an accelerator, else ``cpu``."""
        return "cuda" if self.accelerators else "cpu"

    @property
    def fingerprint(self) -> str:
        """The same for machines that compute equally fast: free memory does not enter."""
        gpus = [accelerator.name for accelerator in self.accelerators]
        return fingerprint([self.processor, self.cores, self.threads, self.bf16, gpus])

    def computes_in(self, device: str) -> str:
        """The type that ``dtype: auto`` means on ``device``: bfloat16 where it is native, else float32."""
        native = all(gpu.bf16 for gpu in self.accelerators) if device == "cuda" else self.bf16
        return "bfloat16" if native else "float32"

    def room_bytes(self, device: str) -> int:
        """Bytes that a training process may take on ``device`` now."""
        if device == "cuda":
            return max((gpu.free_bytes for gpu in self.accelerators), default=0)
        return self.available_bytes

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back, with the fingerprint beside it."""
        return {**asdict(self), "accelerators": [asdict(gpu) for gpu in self.accelerators],
                "fingerprint": self.fingerprint}  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Machine:
        """The inverse of `to_json`."""
        fields = {key: item for key, item in value.items() if key != "fingerprint"}
        return cls(**{**fields, "accelerators": tuple(Accelerator(**gpu) for gpu in value["accelerators"])})
