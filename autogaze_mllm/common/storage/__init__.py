"""Files: paths, json, weights, checksums, locks."""
