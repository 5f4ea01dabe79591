"""Options of `semmae report`."""

from dataclasses import dataclass, field
from pathlib import Path

from semmae.options.fields import about


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html for a run: losses, learning rate, parts, masks, reconstructions; and its parts.html."""

    run: Path = field(metadata=about(reads="run", positional="the folder of a run"))
    """Folder that a verb wrote with --out."""
