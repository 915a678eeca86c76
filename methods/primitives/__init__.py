"""Pure tensor mathematics shared by every method and metric: no model, no data set, nothing but torch."""
