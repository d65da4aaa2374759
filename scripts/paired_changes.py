"""What one changed factor does in the experience that ships, and the best single configuration of the other tasks.

    python scripts/paired_changes.py [--study encoder] [--point lora]

Runs of one task list share a design: an arm such as ``lora:rate-3`` is the arm ``lora`` with one factor changed, on the
same rows. For every arm: on how many tasks its validation loss at the end of the run is lower than that of the point it
changes, and by how much (nats; squared error where labels are numbers). Below: for every task, the arm with the best
mean rank on the other tasks, what it gains here over ``--point``, and what the best arm of all would. Rules and remarks
on short runs in `foretune.catalogue.priors` and docs/log.md rest on these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import fmean, median

from foretune.experience.past import bundled
from foretune.report.text import markdown_table

Losses = dict[str, dict[str, float]]
"""The last validation loss by arm and task"""


def last_losses(study: str) -> tuple[Losses, list[int]]:
    """Losses of the arms that ended on every task, and the steps of all runs; a repeated run counts by its mean."""
    seen: dict[str, dict[str, list[float]]] = {}
    steps: list[int] = []
    for run in bundled():
        if run.study != study or not run.finished or not (points := run.on("validation")):
            continue
        seen.setdefault(run.arm, {}).setdefault(run.task, []).append(points[-1].metrics["loss"][0])
        steps.append(run.horizon)
    tasks = {task for found in seen.values() for task in found}
    whole = {arm: {task: fmean(losses) for task, losses in found.items()} for arm, found in seen.items()}
    return {arm: found for arm, found in whole.items() if set(found) == tasks}, steps


def changes(losses: Losses) -> list[list[str]]:
    """A row for every arm that changes one factor of another."""
    rows = []
    for arm in sorted(losses):
        point = arm.partition(":")[0]
        if arm == point or point not in losses:
            continue
        gains = [losses[point][task] - loss for task, loss in losses[arm].items()]
        rows.append([arm, f"{sum(gain > 0 for gain in gains)} of {len(gains)}", f"{fmean(gains):+.3f}",
                     f"{median(gains):+.3f}", f"{min(gains):+.3f} to {max(gains):+.3f}"])  # fmt: skip
    return rows


def best_elsewhere(losses: Losses, point: str) -> list[tuple[str, float, float]]:
    """(arm with the best mean rank on the other tasks, its gain over ``point``, the best arm's gain) by task."""
    tasks = sorted(losses[point])
    ranks = {task: _ranks({arm: found[task] for arm, found in losses.items()}) for task in tasks}
    found = []
    for task in tasks:
        arm = min(losses, key=lambda name: (fmean(ranks[other][name] for other in tasks if other != task), name))
        best = min(values[task] for values in losses.values())
        found.append((arm, losses[point][task] - losses[arm][task], losses[point][task] - best))
    return found


def _ranks(values: Mapping[str, float]) -> dict[str, int]:
    return {name: place for place, name in enumerate(sorted(values, key=lambda name: values[name]))}


def main() -> None:
    """Print both tables."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--study", default="encoder", help="a task list whose runs ship")
    made.add_argument("--point", default="lora", help="the arm that the best elsewhere is compared with")
    arguments = made.parse_args()
    losses, steps = last_losses(arguments.study)
    if arguments.point not in losses:
        raise SystemExit(f"{arguments.study} has no arm {arguments.point} that ended on every task.")
    print(f"{len(losses)} arms on {len(losses[arguments.point])} tasks, {min(steps)} to {max(steps)} steps\n")
    heading = ("arm", "lower loss on", "mean gain", "median", "least to most")
    print(markdown_table(heading, changes(losses)))
    found = best_elsewhere(losses, arguments.point)
    print()
    for arm, gain, best in found:
        print(f"best elsewhere {arm}: gain over {arguments.point} {gain:+.3f}, best of all {best:+.3f}")
    print(f"mean {fmean(gain for _, gain, _ in found):+.3f} of {fmean(best for _, _, best in found):+.3f}")


if __name__ == "__main__":
    main()
