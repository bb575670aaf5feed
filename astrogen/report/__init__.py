"""Figures and pages that show results to people: the only package that draws."""

from astrogen.report.figure import draw_figure, write_figure
from astrogen.report.page import write_report
from astrogen.report.sheets import write_comparison, write_contact_sheet, write_map_sheet

__all__ = [
    "draw_figure",
    "write_comparison",
    "write_contact_sheet",
    "write_figure",
    "write_map_sheet",
    "write_report",
]
