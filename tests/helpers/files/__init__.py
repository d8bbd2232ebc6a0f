"""Files and folders that tests write: checkpoints, data sets, videos."""
