"""Self-contained report pages: HTML with inline SVG and PNG, nothing fetched from anywhere."""

from __future__ import annotations

from leanconv.report.page import DemoReport, Picture, render

__all__ = ["DemoReport", "Picture", "render"]
