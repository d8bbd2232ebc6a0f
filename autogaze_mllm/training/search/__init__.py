"""Which patches would have been best: labels by search."""
