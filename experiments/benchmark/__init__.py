"""The benchmark: how fast, how large, and against what. `python -m experiments.benchmark`.

Speed is compared by alternation: in one run, every contender takes its turn again and again, and
only ratios of neighbouring turns count, since a machine's own speed drifts by more than what is to
be measured. One file per idea:

    alternation.py  median.py     turns, paired ratios, exact intervals of the median
    networks.py  contenders.py    what is measured: networks, ranks, implementations
    race.py  worker.py  memory.py contenders in processes of their own, and their peak memory
    jax_step.py                   this project's training step
    torch_twin.py  torch_step.py  the same network and step in plain PyTorch (extra `benchmark`)
    sections.py                   the sections of the benchmark; a new one is a file and an entry
    targets.py                    what is aimed at
    outcome.py  markdown.py  plot.py  readme.py    what is written, and how it is shown
"""
