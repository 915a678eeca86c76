"""Tables, figures and the page, made of entries alone; nothing here imports torch."""
