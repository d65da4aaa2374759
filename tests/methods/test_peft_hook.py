"""`import foretune` is light, and afterwards peft loads adapters of our methods, in whichever order it is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

KNOWN = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; assert 'FORETUNE_MORA' in known"


@pytest.mark.parametrize(
    "program",
    [
        f"import foretune, sys; assert 'peft' not in sys.modules; {KNOWN}",
        f"import peft, foretune; {KNOWN}",
        f"import foretune.methods.lora; {KNOWN.replace('FORETUNE_MORA', 'LORA')}",
        f"import foretune.methods.registry; {KNOWN}",
        "import foretune, peft; assert type(peft.__spec__.loader).__name__ == 'SourceFileLoader'",
    ],
)
def test_our_types_are_known_to_peft(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
