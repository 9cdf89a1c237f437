r"""Every statement of both papers in one table, from the committed results of the studies.

Nothing is trained here. The statements of Baity-Jesi et al. 2018 and their rules stand in :mod:`statements`. The
statements of Herrera Segura et al. 2022 and their rules stand here. Each finding is "seen", "not seen" or "not testable
here", with the numbers that decide.

``python -m examples.studies.both_papers`` writes the table into ``RESULTS.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from examples.studies.common import PAGE, RESULTS, table, with_block
from examples.studies.statements import OF_GLASS, OF_NETWORKS, Finding, Statement, finding, statement
from examples.studies.subaging_mnist import SAME_SIZE, SIZES, chosen, common_exponent

Runs = Sequence[dict[str, Any]]

LEARNT = 0.98
"""A network that has learnt a smaller part of the training set is under-parametrised for it."""
ONE = 0.05
"""Smallest p value of a chi squared at which a common exponent is kept."""

OF_SUBAGING: dict[str, Statement] = {}
"""The statements of Herrera Segura et al. 2022 by their keys."""


@statement(OF_SUBAGING, "subaging", "under-parametrised networks show subaging: the lag grows as t_w^mu with mu < 1")
def subages(runs: Runs, order: str) -> Finding:
    """In every network that learns less than 98 %, mu by the threshold is below 1 by two errors."""
    few = [run for run in runs if run["order"] == order and run["series"]["train_accuracy"]["values"][-1] < LEARNT]
    below = [run["mu"]["threshold"] + 2 * run["mu_error"]["threshold"] < 1 for run in few]
    mus = sorted((run["mu"]["threshold"], run["mu_error"]["threshold"]) for run in few)
    words = (
        f"{sum(below)} of {len(few)}, mu from {mus[0][0]:.2f} ± {mus[0][1]:.2f} to {mus[-1][0]:.2f} ± {mus[-1][1]:.2f}"
    )
    return finding(all(below), words)


@statement(OF_SUBAGING, "architecture", "mu is robust to the architecture at a fixed number of parameters")
def robust(runs: Runs, order: str) -> Finding:
    """Chi squared of a common mu by the threshold has a p value of 0.05 or more, for five networks of one size."""
    return _common(chosen(list(runs), SAME_SIZE, order))


@statement(OF_SUBAGING, "one", "on MNIST, one mu rules the whole under-parametrised phase")
def one_exponent(runs: Runs, order: str) -> Finding:
    """Chi squared of a common mu by the threshold has a p value of 0.05 or more, for four sizes."""
    return _common(chosen(list(runs), SIZES, order))


def _common(runs: Runs) -> Finding:
    found = common_exponent(runs, "threshold")
    if found is None:
        return finding(None, "fewer than two exponents")
    words = f"mu from {found.lowest:.2f} to {found.highest:.2f}, p = {found.p:.2g}"
    return finding(found.p >= ONE, words)


# ------------------------------------------------------------------ the table


def tables(results: Mapping[str, dict[str, Any]]) -> str:
    """Return the table in Markdown.

    Args:
        results: the results of the studies, by their names.
    """
    ours, released = results["comparing_dynamics"], results["released_protocol"]["runs"]
    own = [(f"{net['data']} {net['kind']}", net["findings"]) for net in ours["systems"]]
    theirs = [(f"{run['kind']}, {run['settings']}", run["findings"]) for run in released]
    rows = [
        (
            each.text,
            _rule(each),
            _cell([(name, f.get(key)) for name, f in own]),
            _cell([(n, f.get(key)) for n, f in theirs]),
        )
        for key, each in OF_NETWORKS.items()
    ]
    glass = [(each.text, _rule(each), _cell([("p = 3", ours["glass_findings"][k])])) for k, each in OF_GLASS.items()]
    runs = results["subaging_mnist"]["runs"]
    orders = list(dict.fromkeys(run["order"] for run in runs))
    last = [
        (each.text, _rule(each), *(_cell([("", each.decide(runs, order))]) for order in orders))
        for each in OF_SUBAGING.values()
    ]
    return "\n\n".join(
        [
            "**Baity-Jesi et al. 2018, networks**, in eight trainings of ours by plain SGD, and in trainings by the "
            "protocol of the released program:",
            table("statement = {} | rule = {} | our settings = {} | their settings = {}", rows),
            "ResNet-18, CIFAR-10 and CIFAR-100 are *not testable here*, because there was no GPU.",
            "**Baity-Jesi et al. 2018, the glass**, with the callback and by the exact equations:",
            table("statement = {} | rule = {} | spherical p = 3 model = {}", glass),
            "**Herrera Segura et al. 2022**, on MNIST by the protocol of the paper, with the images in the order of "
            "the file and reshuffled:",
            table("statement = {} | rule = {} | " + " | ".join(f"{order} = {{}}" for order in orders), last),
        ]
    )


def _rule(each: Statement) -> str:
    return " ".join((each.decide.__doc__ or "").split())


def _cell(findings: Sequence[tuple[str, Finding | None]]) -> str:
    """Return the findings of several networks by their verdicts, with the numbers of the testable ones."""
    parts = []
    for verdict in ("seen", "not seen", "not testable here"):
        told = [(name, found["words"]) for name, found in findings if found and found["verdict"] == verdict]
        if verdict == "not testable here":
            names = [name for name, _ in told if name]
            parts += [f"*{verdict}*: {' · '.join(names)}"] if names else [f"*{verdict}*"] if told else []
        elif told:
            parts.append(f"*{verdict}*: " + " · ".join(f"{name} ({words})" if name else words for name, words in told))
    return ". ".join(parts)


def main() -> None:
    """Read the results, and write the table."""
    names = ("comparing_dynamics", "released_protocol", "subaging_mnist")
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    text = tables(results)
    PAGE.write_text(with_block(PAGE.read_text(), "both_papers", text))
    print(text)


if __name__ == "__main__":
    main()
