"""`semmae report`: one HTML page about a run, made again from its files."""

from pathlib import Path

from semmae.options.report import ReportOptions
from semmae.progress import say
from semmae.reporting.ending import first, lines
from semmae.reporting.next_steps import next_steps
from semmae.reporting.part_samples import FILE as SAMPLES
from semmae.reporting.parts_page import write_parts_page
from semmae.reporting.run_page import write_report
from semmae.reporting.verdicts import verdicts
from semmae.run.finished import is_finished


def report(options: ReportOptions) -> Path:
    """Write report.html for a run: losses, learning rate, parts, masks, reconstructions; and its parts.html."""
    path = write_report(options.run)
    pages = [write_parts_page(folder) for folder in (options.run, options.run / "parts") if (folder / SAMPLES).exists()]
    run = options.run
    steps = next_steps(run) if is_finished(run) else []
    say(lines(verdicts=verdicts(run), pages=[str(page) for page in [path, *pages]], step=first(steps)))
    return path
