"""The pytest plugin: the fixture `check_vjp`, and the options `--grad-seed` and `--grad-effort`.

    def test_my_kernel(check_vjp):
        check_vjp(my_kernel, reference, x, w)

The fixture is `manual_backprop.testing.check_vjp` with the seed and the effort of the command line. A test fails, with
the report, when a report is wrong and the test did not look at it; a test that looks (`assert not check_vjp(…)`) judges
for itself. Whatever fails, the wrong reports are printed with it.
"""

from __future__ import annotations

import pytest

from manual_backprop.testing.oracle import check_vjp as judge
from manual_backprop.testing.report import Report

REPORTS = pytest.StashKey[list]()
LOOKED_AT = {"ok", "failures", "findings", "diagnosis", "explanation"}


def pytest_addoption(parser):
    group = parser.getgroup("manual_backprop", "gradients held against an oracle")
    group.addoption("--grad-seed", type=int, default=0, metavar="N", help="the seed of check_vjp (default: 0)")
    group.addoption(
        "--grad-effort", default="normal", choices=("quick", "normal", "thorough"), help="the effort of check_vjp"
    )


class Watched(Report):
    """A report that knows whether the test has looked at it."""

    def __getattribute__(self, name):
        if name in LOOKED_AT:
            object.__getattribute__(self, "__dict__")["looked_at"] = True
        return object.__getattribute__(self, name)


@pytest.fixture
def check_vjp(request):
    """`check_vjp(candidate, reference, *args, **options) -> Report`; a wrong one not looked at fails the test."""
    chosen = {
        "seed": request.config.getoption("--grad-seed"),
        "effort": request.config.getoption("--grad-effort"),
    }
    reports = request.node.stash.setdefault(REPORTS, [])

    def check(candidate, reference, *args, **options) -> Report:
        __tracebackhide__ = True
        found = judge(candidate, reference, *args, **(chosen | options))
        report = Watched(found.candidate, found.reference, found.seed, found.findings, found.explain)
        reports.append((report, found))
        return report

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    __tracebackhide__ = True
    outcome = yield
    unseen = [found for report, found in item.stash.get(REPORTS, []) if not found and "looked_at" not in vars(report)]
    if unseen:
        item.stash[REPORTS] = [(report, found) for report, found in item.stash[REPORTS] if found not in unseen]
        pytest.fail("\n\n".join(map(str, unseen)), pytrace=False)
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed:
        for _, found in item.stash.get(REPORTS, []):
            if not found:
                report.sections.append(("check_vjp", str(found)))
    return report
