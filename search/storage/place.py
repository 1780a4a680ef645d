"""The place of the results folder: one that outlives the process which writes there."""

from pathlib import Path

from cellseg.errors import Problem, UserError

_COPIES = ("runtime_resources", "working_dir_files")
"""Folder in Ray's session where working directories of jobs are unpacked; Ray deletes them when they are unused."""


def check_place(results: Path) -> None:
    """Refuse a results folder inside Ray's temporary copy of a job's working directory, as a UserError.

    A relative ``--results`` of a job that was submitted with a working directory lies there.
    """
    folder = results.resolve()
    if _COPIES in zip(folder.parts, folder.parts[1:], strict=False):
        raise UserError(
            Problem(
                "--results",
                "must be a folder that outlives the job",
                f"'{results}', which lies in Ray's temporary copy of the working directory ({folder})",
                "Pass --results with the absolute path of a folder that all machines share.",
            )
        )
