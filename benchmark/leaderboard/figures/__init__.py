"""Figures, by kind; they know numbers and names, and nothing of entries.

Colours are those of Okabe and Ito (2008), or of a map whose lightness is monotone (cividis); markers, dashes, fills and
hatches tell the same apart in grey. The same numbers give the same bytes under one version of matplotlib.

A paper's figure is drawn for ``stem``, a path without a suffix, with ``title`` over it; what draws it returns the files
written, ``stem`` with .png and .svg. Whatever is drawn raises InputError where a file cannot be written.
"""
