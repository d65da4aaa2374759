"""The tiny Llama with its adapter that the export tests build."""

from tests.export.conftest import tiny  # noqa: F401  (a fixture)
