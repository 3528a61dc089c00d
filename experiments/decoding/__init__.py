"""Decoding: from a trained Transformer and source rows to target rows."""
