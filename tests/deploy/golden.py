"""Write golden/*.yaml anew after the chart changed, and read the diff: run it as a script."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from support.charts import DEPLOY, VALUES, template

if __name__ == "__main__":
    for values in VALUES:
        (DEPLOY / "golden" / values.name).write_text(template("helm3", "-f", values))
