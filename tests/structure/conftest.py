"""A finished run for the commands that read one."""

from tests.report.conftest import record

__all__ = ["record"]
