"""Which tokens a step trains on. One function a file: `build(...) -> Strategy`."""
