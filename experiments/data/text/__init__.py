"""Where plain text comes from; what becomes of it: `../text_data.py` and `../labelled_text.py`.

`plain_text.py` is the form it always has: documents of paragraphs, in three splits.
"""
