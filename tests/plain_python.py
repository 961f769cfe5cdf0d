"""Ask in a process of its own: under pytest the hook on annotations refuses wrong types first, in its own words."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASK = """
import json, sys
names = {}
setup, calls = json.load(sys.stdin)
exec(setup, names)
answers = []
for call in calls:
    try:
        eval(call, names)
        answers.append("accepted")
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""


def answers(setup: str, calls: list[str]) -> dict[str, str]:
    """Return what each call raises after some setup: the error's type and text, or "accepted"."""
    given = json.dumps([setup, calls])
    result = subprocess.run([sys.executable, "-c", ASK], input=given, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(zip(calls, json.loads(result.stdout), strict=True))
