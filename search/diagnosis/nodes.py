"""The findings about a Ray cluster and every machine of it."""

from collections.abc import Iterator
from pathlib import Path

from cellseg.errors import UserError
from search.cluster.address import asks_for_token, find_cluster
from search.cluster.connect import ray_cluster
from search.cluster.preflight import NodeChecks, NodeReport
from search.cluster.shared_folder import own_folders, shared_folder
from search.diagnosis.finding import Finding, finding_of, findings_of_error
from search.storage.remote import remote_results


def cluster(address: str, results: Path) -> Iterator[Finding]:
    """Find out whether a search could run on the cluster: joining it, its token, and every machine.

    Args:
        results: folder of all studies, which every machine must see.
    """
    try:
        head = find_cluster(address)
        with_token = asks_for_token(head)
        with ray_cluster(address) as dashboard:
            yield Finding("cluster", "ok", f"{head}, dashboard http://{dashboard}")
            if with_token:
                yield Finding("cluster token", "ok", "the cluster asks for it")
            else:
                yield Finding(
                    "cluster token",
                    "warning",
                    "the cluster must ask for a token, but everyone who reaches it can run code on it",
                    "Set RAY_AUTH_MODE=token before `ray start` on every machine, with the same ~/.ray/auth_token.",
                )
            yield from _nodes(results)
    except UserError as error:
        yield from findings_of_error("cluster", error)


def _nodes(results: Path) -> Iterator[Finding]:
    is_new = not results.exists()
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # told with the folder of results
    try:
        with own_folders() if remote_results(results) else shared_folder(results) as shared:
            for report in NodeChecks(None, shared).wait():
                yield from _node(report)
    finally:
        if is_new and not any(results.iterdir()):
            results.rmdir()


def _node(report: NodeReport) -> Iterator[Finding]:
    what = f"node {report.name}"
    for problem in report.problems:
        yield finding_of(what, "problem", problem)
    for problem in report.warnings:
        yield finding_of(what, "warning", problem)
    if not report.problems:
        yield Finding(what, "ok", report.summary)
