"""`torchrun` for the scripts beside it.

Where a process ended after one line that says what is wrong, this one ends as it did, without torchrun's report of it.

    python scripts/launch.py --standalone --nproc-per-node 2 -m autogaze_mllm.cli train-gaze videos --out run
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

SAID = (2, 3)  # exit codes of autogaze-mllm: the input is at fault, a training diverged


def main() -> int:
    # It tells of a failed process before anybody can ask why; what is no line of ours is told of by the error itself.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in SAID:
            raise
        return first.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
