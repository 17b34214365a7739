"""The campaigns of campaigns.py, shortened: nothing is lost, and nothing is silently wrong.

Each runs its control as well, and fails where a planted fault goes unnoticed.
"""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "campaigns.py"


@pytest.mark.parametrize(
    ("campaign", "count"),
    [
        *(("kill", 20), ("stop", 10), ("full-disk", 5)),
        *(("damage", 300), ("idx", 200), ("fuzz", 500)),
    ],
)
def test_no_trial_of_a_campaign_fails(campaign, count):
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, campaign, "--count", str(count)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{campaign}: {count} trials, 0 failed, seed 0" in done.stdout
