"""A study as one page to send to a colleague, and its findings as text."""

from __future__ import annotations

from lossearch.report.page import write_report
from lossearch.report.plots import write_plots
from lossearch.report.text import leaderboard, summary, verdict_text

__all__ = ["leaderboard", "summary", "verdict_text", "write_plots", "write_report"]
