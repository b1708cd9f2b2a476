"""What a build costs that has nothing to do, against importing the libraries that a build cannot do without."""

import sys
from statistics import median

from bench import measure
from bench.contenders import Mergeflow, Place
from bench.workloads import Workload

IMPORTS = "import networkx, pydantic, yaml, click"


def section(
    workload: Workload, place: Place, mergeflow: Mergeflow, times: int = 7
) -> tuple[str, dict[str, list[float]]]:
    """Builds once, then measures builds that find everything up to date, by turns with the imports alone."""
    command, folder, _ = mergeflow.prepare(workload, place)
    log = place.scratch / "no-op.log"
    measure.run(command, cwd=folder, log=log, env=mergeflow.env)
    build: list[float] = []
    imports: list[float] = []
    for _ in range(times):
        build.append(measure.run(command, cwd=folder, log=log, env=mergeflow.env).cpu)
        imports.append(measure.run([sys.executable, "-c", IMPORTS], cwd=folder, log=log).cpu)
    ratio = median(build) / median(imports)
    text = (
        f"## No-op build\n\n`mergeflow build` with nothing out of date: {median(build):.3f} s of CPU, "
        f'{ratio:.2f} times `python -c "{IMPORTS}"` ({median(imports):.3f} s); medians of {times}.'
    )
    return text, {"build": build, "imports": imports}
