"""Report what a record shows: text, figures, and one interactive page."""

from lightning_glassy.report.result import Report, report

__all__ = ["Report", "report"]
