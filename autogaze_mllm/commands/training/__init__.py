"""The verbs that train: a gaze model and its labels, a wrapped model and what comes of it."""
