"""Where and how numbers are worked out: processes, threads, memory, offloaded weights, compiled functions."""
