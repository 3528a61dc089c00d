"""One file per sweep: `get_sweep()` returns its runs as a list of (config file, arguments)."""
