"""Where pairs of German and English text come from; what becomes of them: `../translation_data.py`.

`parallel_text.py` is the form they all have: raw lines, in three splits.
"""
