"""Reports: what a store knows about papers and their verdicts, as a page, Markdown, JSON and a table for a README.

`collect` reads a store into a `Report`. `report_json` turns it into plain data under a versioned schema; the page and
the Markdown are written from that data, so what one of them says the others say too.
"""

from paperworks.lab.report.collect import Report, Store, collect
from paperworks.lab.report.figures import MissingResults, Results
from paperworks.lab.report.html import render_html
from paperworks.lab.report.jsonform import report_json, schema
from paperworks.lab.report.markdown import render_markdown
from paperworks.lab.report.readme import readme_structure, readme_table, update_readme

__all__ = [
    "MissingResults",
    "Report",
    "Results",
    "Store",
    "collect",
    "readme_structure",
    "readme_table",
    "render_html",
    "render_markdown",
    "report_json",
    "schema",
    "update_readme",
]
