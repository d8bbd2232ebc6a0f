"""One file for each verb of the command line: `add` describes its options, `run` does it. Verbs that train are in
`training/`, what verbs share is in `arguments/`."""
