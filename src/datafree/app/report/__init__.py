"""A run, or several side by side, as one HTML file that needs no network."""

from datafree.app.report.page import ReportError, check_extra
from datafree.app.report.write import check_report, labels_of, report_runs, write_report

__all__ = [
    "ReportError",
    "check_extra",
    "check_report",
    "labels_of",
    "report_runs",
    "write_report",
]
