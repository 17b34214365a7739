"""Long campaigns against what goes wrong: each prints its failures and one line of figures.

    python tests/campaigns.py kill --count 300 --seed 0
    python tests/campaigns.py stop --count 100
    python tests/campaigns.py full-disk --count 50
    python tests/campaigns.py damage --count 5000
    python tests/campaigns.py idx --count 2000
    python tests/campaigns.py fuzz --count 10000
    python tests/campaigns.py check --count 2000
    python tests/campaigns.py locate --count 200

The exit status is 1 where a trial failed, or where the campaign's *control*, a few trials of a
program with a planted fault, did not fail. The suite runs each campaign shortened
(test_campaigns.py); the figures of full runs stand in docs/campaigns.md.
"""

import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import Literal

import campaign_files
import campaign_runs
import tyro
from campaign_report import Report


def fuzz(root: pathlib.Path, count: int, seed: int) -> Report:
    """Imported when it is wanted: it starts JAX, and the runs are forked from a process without."""
    import campaign_fuzz

    return campaign_fuzz.fuzz(root, count, seed)


def check(root: pathlib.Path, count: int, seed: int) -> Report:
    import campaign_check

    return campaign_check.check(root, count, seed)


def locate(root: pathlib.Path, count: int, seed: int) -> Report:
    import campaign_locate

    return campaign_locate.locate_(root, count, seed)


CAMPAIGNS = {
    "kill": campaign_runs.kill,
    "stop": campaign_runs.stop,
    "full-disk": campaign_runs.full_disk,
    "damage": campaign_files.damage,
    "idx": campaign_files.idx,
    "fuzz": fuzz,
    "check": check,
    "locate": locate,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which campaign to run, how long, and from which seed."""

    campaign: tyro.conf.Positional[
        Literal["kill", "stop", "full-disk", "damage", "idx", "fuzz", "check", "locate"]
    ]
    count: int = 20
    """How many trials."""
    seed: int = 0
    """Decides every moment, place and argument that is drawn."""


def main(options: Options) -> int:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        report = CAMPAIGNS[options.campaign](pathlib.Path(root), options.count, options.seed)
    print(*report.failures, sep="\n")
    print(
        f"{options.campaign}: {options.count} trials, {len(report.failures)} failed, "
        f"seed {options.seed}; {report.figures}; control: {report.control}; "
        f"{time.perf_counter() - begin:.0f} s"
    )
    return 1 if report.failures or report.control != "caught" else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
