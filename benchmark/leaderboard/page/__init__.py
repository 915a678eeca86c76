"""The page of all results: its data, templates, style and script."""
