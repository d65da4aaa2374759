"""Making peft know a method of ours, so that saving, loading, switching and merging are peft's own code.

peft looks a method up by its `PeftType`, an enumeration that it does not let others extend, and `adapter_config.json`
stores the member's value. `register` adds the member, once, and refuses where this peft's enumeration is not as
expected. Our types carry the prefix ``foretune_``, so that a later peft with a method of the same name is no conflict.

What it does not do: change anything of a method that peft has.
"""

from __future__ import annotations

from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from foretune.errors import ModelError

PREFIX = "foretune_"


def peft_name(method: str) -> str:
    """How peft names our method in lower case; ``adapter_config.json`` holds it in upper case."""
    return PREFIX + method.replace("-", "_")


def register(method: str, config_class: type[Any], model_class: type[Any]) -> None:
    """Make peft build and load ``method``; a second call with the same classes does nothing.

    Raises `ModelError` when peft's enumeration cannot be extended or the name belongs to other classes.
    """
    name = peft_name(method)
    member = _member(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known is not None:
        if known is not config_class:
            raise ModelError(f"peft knows another method called {name}.", remedy="Give the method another name.")
        return
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=f"{name}_")


def _member(value: str) -> PeftType:
    """The member ``value`` of `PeftType`, added when it is not there."""
    if value in PeftType.__members__:
        return PeftType[value]
    member: Any = str.__new__(PeftType, value)
    member._name_ = member._value_ = value
    try:
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType.__members__)
        type.__setattr__(PeftType, value, member)
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
    except (AttributeError, TypeError) as error:
        raise ModelError(f"this version of peft cannot take new methods ({error}).") from error
    if PeftType(value) is not member or getattr(PeftType, value) is not member:
        raise ModelError("this version of peft cannot take new methods.", remedy="Install the peft that we ask for.")
    return PeftType[value]
