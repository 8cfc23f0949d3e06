"""One program on many devices: the same code runs in every process of a run, and the first one owns the files."""
