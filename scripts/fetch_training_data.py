"""Fetches the published training data of the gaze model (or another data set of the hub) and unpacks its archives,
each in the folder that it lies in.

    python scripts/fetch_training_data.py AutoGaze-Training-Data

What was fetched is not fetched again; an interrupted download goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.errors import InputError, first_line
from autogaze_mllm.common.storage.files import output_folder
from autogaze_mllm.evaluation.data.hub import READY, unpack

PUBLISHED = "bfshi/AutoGaze-Training-Data"


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path, help="where it is kept")
    parser.add_argument("--repository", default=PUBLISHED, help=f"id of the data set (default {PUBLISHED})")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    return run_program(parser, lambda given: fetch(given.folder, given.repository, given.revision))


def fetch(folder: Path, repository: str, revision: str | None) -> None:
    from filelock import FileLock
    from huggingface_hub import HfApi, snapshot_download

    mark = output_folder(folder) / READY
    with FileLock(folder / ".lock"):  # several machines may come at the same time
        if mark.exists():
            return
        try:
            # By its commit: without a connection a download into a folder that is there would do nothing, and not fail.
            commit = HfApi().dataset_info(repository, revision=revision).sha
            snapshot_download(repository, repo_type="dataset", revision=commit, local_dir=folder)
            unpack(folder, beside=True)
            mark.touch()
        except Exception as error:  # the hub's own, the archives', and those of whichever http library the hub uses
            raise InputError(
                f"{repository} could not be fetched from the hub: {first_line(error)}; or name its folder"
            ) from error


if __name__ == "__main__":
    sys.exit(main())
