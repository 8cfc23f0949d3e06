"""Every folder and file that potstill writes."""
