"""Rows -> terminal, Markdown, LaTeX, figures and one self-contained page. Reads a study's folder, runs no network."""

from anchored.report.page import terminal, write

__all__ = ["terminal", "write"]
