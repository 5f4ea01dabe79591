"""`semmae report`: one HTML page about a run, made again from its files."""

from dataclasses import dataclass
from pathlib import Path

from semmae.reporting import write_report


@dataclass(frozen=True)
class ReportOptions:
    """Options of `semmae report`."""

    run: Path
    """Folder that a verb wrote with --out."""


def report(options: ReportOptions) -> Path:
    """Write report.html for a run: losses, learning rate, parts, masks, reconstructions."""
    path = write_report(options.run)
    print(path)
    return path
