"""Reports: finished and running experiments side by side, as a page, as Markdown and as pictures.

Everything comes from what the runs recorded, in their folders or in MLflow; nothing is computed
anew and no dataset is needed.
"""

from segresmamba.report.page import Report, write_report
from segresmamba.report.sources import ReportError

__all__ = ["Report", "ReportError", "write_report"]
