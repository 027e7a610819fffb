"""examples/production/monitoring: the metrics of alert rules and dashboard exist, and promtool accepts both."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from durably.engine.metrics.catalogue import CATALOGUE, MetricKind

FOLDER = Path(__file__).parents[2] / "examples" / "production" / "monitoring"
ALERTS, DASHBOARD = FOLDER / "alerts.yaml", FOLDER / "grafana-dashboard.json"
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "monitor.md"
NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def series() -> set[str]:
    suffixes = {MetricKind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    found = {f"{each.full_name}{suffix}" for each in CATALOGUE for suffix in suffixes.get(each.kind, ("",))}
    return found | {"durably_up"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def expressions() -> Iterator[str]:
    """The dashboard's expressions, with values in place of Grafana's variables."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$function", ".*")


def named(text: str) -> set[str]:
    return set(re.findall(r"\bdurably_\w+", text))


def test_every_metric_that_they_name_exists() -> None:
    assert named(ALERTS.read_text()) <= series()
    assert named(DASHBOARD.read_text()) <= series()
    assert named("\n".join(HOW_TO.read_text().split("```")[::2])) <= series()


def test_every_family_is_on_the_dashboard() -> None:
    shown = named(DASHBOARD.read_text())
    missing = {each.name for each in CATALOGUE if not any(name.startswith(each.full_name) for name in shown)}
    assert missing == {"start_time_seconds", "build_info"}


def test_alert_rules_have_the_parts_that_people_need() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 8
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_panels_of_the_dashboard_have_places_units_and_queries() -> None:
    assert [panel["id"] for panel in panels()] == list(range(1, len(panels()) + 1))
    taken = set[tuple[int, int]]()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@NEEDS_PROMTOOL
def test_promtool_accepts_the_rules_and_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    promtool("check", "rules", ALERTS)
    recorded = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    as_rules = tmp_path / "dashboard.yaml"
    as_rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", as_rules)


@NEEDS_PROMTOOL
def test_each_alert_is_raised_by_its_condition(tmp_path: Path) -> None:
    """promtool evaluates each expression over series of an hour."""
    ended = 'durably_runs_ended_total{function="%s",outcome="%s"}'
    cases = {
        "interval": "1m",
        "input_series": [
            {"series": ended % ("shop-bad", "failed"), "values": "0+1x60"},
            {"series": ended % ("shop-bad", "completed"), "values": "0+2x60"},
            {"series": ended % ("shop-good", "failed"), "values": "0+0x60"},
            {"series": ended % ("shop-good", "completed"), "values": "0+2x60"},
            {"series": 'durably_calls_total{function="shop-bad",outcome="unreached"}', "values": "0+1x60"},
            {"series": 'durably_oldest_call_wait_seconds{function="shop-bad"}', "values": "0+60x60"},
            {"series": 'durably_up{instance="a"}', "values": "1x10 0x50"},
        ],
    }
    expressions_of = {rule["alert"]: rule["expr"] for rule in rules()}
    expected = {
        "DurablyFunctionFails": ("30m", ['{function="shop-bad"}']),
        "DurablyAppUnreached": ("30m", ['{function="shop-bad"}']),
        "DurablyCallsWait": ("30m", ['{function="shop-bad"}']),
        "DurablyDown": ("30m", ['durably_up{instance="a"}']),
        "DurablyTimersLate": ("30m", []),
        "DurablyLogNotCheckpointed": ("30m", []),
    }
    # Each expression has a value for these labels, and for no others.
    tests = [
        {
            "expr": f"count by (function, instance) ({expressions_of[name]})",
            "eval_time": at,
            "exp_samples": [{"labels": labels.removeprefix("durably_up"), "value": 1} for labels in found],
        }
        for name, (at, found) in expected.items()
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [{**cases, "promql_expr_test": tests}]}))
    promtool("test", "rules", file)
