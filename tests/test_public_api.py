"""No public name, argument or default changes unnoticed: tests/public_api.txt has them all."""

import difflib

from tests import public_api


def test_the_public_api_is_the_one_on_record():
    recorded = public_api.FILE.read_text().splitlines()
    now = public_api.printed().splitlines()
    changed = [*difflib.unified_diff(recorded, now, "recorded", "now", lineterm="", n=0)]
    assert not changed, "\n".join(
        ["python -m tests.public_api records it; CHANGELOG.md tells of it", *changed]
    )
