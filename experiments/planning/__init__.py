"""What a mesh of devices would need to train a config, found by compiling for it and not running.

    needs.py            the whole of it, by device and by mesh
    planned_run.py      the run, with shapes in the place of data and parameters
    shards.py           how the leaves of the training state are split, and which could be
    collectives.py      what devices send each other, read from a compiled program
    copies.py           what libraries on CPUs copy, read from it as well
    program_text.py     the text of a compiled program
    replica_groups.py   which devices exchange something, as compilers write it
    as_text.py          how it is told
    stand_ins.py        devices that are not there
    measured.py         the memory that the steps really take

The command is `experiments/plan.py`.
"""
