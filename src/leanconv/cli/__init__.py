"""The command line `leanconv`. Each command imports what it needs when it runs: help is quick and torch-free."""

from __future__ import annotations

from leanconv.cli.app import app, main

__all__ = ["app", "main"]
