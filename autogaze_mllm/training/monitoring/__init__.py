"""What a run shows of itself: curves, pictures, its log and the trackers."""
