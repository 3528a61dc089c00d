"""One file per experiment: `get_config(arg)` returns its `ml_collections.ConfigDict`."""
