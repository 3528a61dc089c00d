"""Experiments: the training loop, data sets, models and commands around `lowrank_jax`."""
