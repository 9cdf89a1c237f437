"""Report the findings in a record: text, figures, and one interactive page."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_glassy.report.result import Report as Report
    from lightning_glassy.report.result import report as report

__all__ = ["Report", "report"]


def __getattr__(name: str) -> Any:
    # The tab imports modules of this package at the start of TensorBoard, and the analysis would take a second.
    if name in __all__:
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise ImportError("a report needs scipy: pip install 'lightning-glassy[report]'") from error
        from lightning_glassy.report import result

        return getattr(result, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
