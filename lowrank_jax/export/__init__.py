"""Trained models that leave the building: files for other tools, and programs that run alone.

* :func:`save` and :func:`load`: a tree of parameters, factorized or merged, as one safetensors
  file. Any safetensors reader finds the arrays in it; a JSON manifest inside says what the factors
  are factors of. ``save(path, lowrank_jax.merge(params))`` is the dense model.
* :func:`save_program` and :func:`load_program`: a function with its weights, for any batch size, as
  a folder that needs neither this library nor flax.

Nothing is pickled, so these functions run no code of whoever wrote what they read. A file takes its
place whole or not at all. Parameters, programs and manifests are under a checksum, with which they
are compared; the ``predict.py`` beside a program is Python that no checksum covers, and
:func:`load_program` does without it. Both need ``pip install 'lowrank_jax[export]'`` (safetensors,
and the flatbuffers that ``jax.export`` writes with).
"""

from lowrank_jax.export.model_file import load, read_manifest, save
from lowrank_jax.export.predict import load as load_program
from lowrank_jax.export.program import save_program

__all__ = ["load", "load_program", "read_manifest", "save", "save_program"]
