"""Training a small LLM by the clock, with everything it reads on the device: features that are computed once, and many
questions about each video that see the video and none of each other."""
