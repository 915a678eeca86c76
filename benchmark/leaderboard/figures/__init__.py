"""Figures, a kind a module; they know numbers and names, and nothing of entries.

Colours are those of Okabe and Ito (2008), or of a map whose lightness is monotone (cividis); markers, dashes, fills and
hatches tell the same apart in grey. The same numbers give the same bytes under one version of matplotlib.
"""
