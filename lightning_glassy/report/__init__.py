"""Report the findings in a record: text, figures, and one interactive page."""

from lightning_glassy.report.result import Report, report

__all__ = ["Report", "report"]
