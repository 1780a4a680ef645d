"""A driver of a study of stand-ins, as a process of its own: ``python study_driver.py ADDRESS FOLDER NAME SETTINGS``.

It prints a JSON list for every thing that it is told: its kind, a text and the time.
"""

import json
import os
import sys
import time
from pathlib import Path

import ray
from fakes import FakeTrainable, empty_table, make_study

import search.cluster.driver


def main(address: str, folder: str, name: str, settings: str) -> None:
    def tell(kind: str, text: str = "") -> None:
        sys.stdout.write(json.dumps([kind, text, time.time()]) + "\n")
        sys.stdout.flush()

    content = json.loads(settings)
    resources = content.get("resources")
    study = make_study(Path(folder), name, **content)
    ray.init(address=address, log_to_driver=False, namespace="tests")
    wanted = study.experiment.resources
    search.cluster.driver.CellTrainable = FakeTrainable
    tell("begins", str(os.getpid()))
    done = search.cluster.driver.run_study(
        study,
        empty_table(),
        wanted.model_dump() if resources else None,
        shared=True,
        on_note=lambda text: tell("note", text),
        on_wait=lambda text: tell("wait", text),
    )
    tell("over", str(done))
    tell("hours", str(study.limits.usage.hours))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
