"""Evaluation on video benchmarks: data in the published layouts, a runner that can be killed, scores with intervals."""
