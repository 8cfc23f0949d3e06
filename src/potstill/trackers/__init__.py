"""Where a run's steps, validations and figures go beside its own files, one tracker a file; none unless named.

Each file defines `start(run, *, options) -> Tracker` (see `_tracker`), and may state PACKAGE, the package that it
imports: its extra has the tracker's name. Only the first process of a run talks to trackers. A start of a run is
one run of a tracker, and what earlier starts have logged is logged to it again, so its curves are whole.
"""
