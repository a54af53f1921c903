"""`make publish`: what the runs found goes into results/ and figures/, which are tracked: rows, figures, the tables of both
READMEs, a card for each model, and results/report.html.

python -m sparsernn.report [study.yaml]: the runs and the profile of that study. What is damaged is named on standard error and
left out, and the exit status is 1 then.
"""

import sys

from ..files import project_root
from ..study.asked import read_study
from . import documents, page
from .publish import publish

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "study.yaml"
    try:
        study = read_study(project_root() / name)
    except (OSError, ValueError) as problem:
        sys.exit(f"make publish: {problem}")
    results, damaged = project_root() / "results", []
    paths = publish(study["profile"], problem=damaged.append)
    for path in [*paths, *documents.write(results, project_root()), page.write(results)]:
        sys.stdout.write(f"{path}\n")
    sys.exit("\n".join(dict.fromkeys(damaged)) or 0)
