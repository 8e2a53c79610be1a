"""Figures as people read them."""

import math
import statistics


def median(values):
    """The middle one: one slow round on a busy machine does not move it."""
    return statistics.median(values)


def percentile(values, share):
    """The smallest value that `share` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def show(head, rows):
    """Prints a table: first column to the left, the rest to the right."""
    rows = [head, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def target_row(what, value, target, unit, digits):
    """A row of a table of what was measured, beside what it may be at most."""
    return [what, f"{value:.{digits}f} {unit}", f"≤ {target} {unit}", "met" if value <= target else "missed"]


def part_row(name, value, unit, digits):
    """A row below one of those, for a part of it."""
    return [f"  {name}", f"{value:.{digits}f} {unit}", "", ""]
