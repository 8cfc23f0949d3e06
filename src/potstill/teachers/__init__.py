"""Where a teacher's word comes from. One function a file: `build(...) -> Teacher`."""
