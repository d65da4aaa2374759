"""``python -m foretune``: the same as the ``foretune`` command."""

from __future__ import annotations

from foretune.cli.main import main

if __name__ == "__main__":
    main()
