"""One file for each verb of the command line: `add` describes its options, `run` does it."""
