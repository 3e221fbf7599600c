"""run.py for processes that tests start: it draws no reports, and its programs are kept where the tests' own are."""

import sys
import time

import run
from ophjax.train import host
from ophjax.train.report import page


def write_report(folder):
    """Takes a while, as drawing does: there is time for a signal between two checkpoints."""
    time.sleep(0.5)
    return folder / "report.html"


host.prepare_compiler = lambda: None  # it would keep no program that compiles in less than half a second
page.write_report = write_report
sys.exit(run.main())
