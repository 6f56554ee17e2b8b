"""A run as one HTML file: what helped, what hurt, when, and whether the numbers can be trusted.

`write_report(run, file)` needs no server and no network, and the file needs none either. What it
shows is asked of the value store (`facts`, `texts`), drawn as Vega-Lite (`charts`), and put
together in `page`. The JavaScript of the charts comes out of the package vl-convert (extra
`report`), that of the text cards is `cards.js`.
"""

from inrun.report.errors import ReportError
from inrun.report.page import write_report

__all__ = ["ReportError", "write_report"]
