"""What ``adapter_config.json`` of one of our methods holds beside the method's own fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig


@dataclass
class AdapterConfig(PeftConfig):  # type: ignore[misc]
    """Fields that every method of ours has; a method adds its own in a subclass.

    Class attribute ``method`` is the method's name; the knob's field is named by ``knob``.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules that are adapted."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules that are left out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})
    knob_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Knobs that differ from the common one, by the module's name."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything drawn and then frozen."})

    method = ""
    knob = "rank"

    def __post_init__(self) -> None:
        """Set the type, and keep the target names in a fixed order so that files are reproducible."""
        from foretune.methods.tuners.register import peft_name

        super().__post_init__()
        self.peft_type = peft_name(self.method).upper()
        if isinstance(self.target_modules, set | tuple):
            self.target_modules = sorted(self.target_modules)

    def knob_of(self, module: str) -> int:
        """The knob's value for the module of that name."""
        ours: Any = getattr(self, self.knob) if self.knob else 0
        return int(next((value for name, value in self.knob_pattern.items() if _is(module, name)), ours))


def _is(module: str, name: str) -> bool:
    """Whether ``name`` means ``module``: equal, or its end (a classifier puts its base under another name)."""
    return module == name or module.endswith(f".{name}")
