"""AutoGaze: the gaze model, with the published weights' layout."""
