"""Foretune: AutoML for fine-tuning language models.

``foretune.fit`` and ``foretune.plan`` are the two entry points; everything heavy is imported when they run.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
