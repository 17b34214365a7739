"""Training: the loop and its order, the data, saved states, the memory it needs, its figures."""
