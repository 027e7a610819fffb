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

from durably.engine.api.metrics import CATALOGUE, MetricKind

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


ENDED = 'durably_runs_ended_total{function="%s",outcome="%s"}'
BUCKET = 'durably_%s_bucket{instance="%s",le="%s"}'
SERIES = {
    ENDED % ("bad", "failed"): "0+1x60",
    ENDED % ("bad", "completed"): "0+2x60",
    ENDED % ("good", "failed"): "0+0x60",
    ENDED % ("good", "completed"): "0+2x60",
    'durably_calls_total{function="bad",outcome="unreached"}': "0+1x60",
    'durably_calls_total{function="good",outcome="unreached"}': "0+0x60",
    'durably_oldest_call_wait_seconds{function="bad"}': "0+60x60",
    'durably_oldest_call_wait_seconds{function="good"}': "1+0x60",
    'durably_up{instance="bad"}': "1x10 0x50",
    'durably_up{instance="good"}': "1x60",
    BUCKET % ("timer_lag_seconds", "bad", "10"): "0+0x60",
    BUCKET % ("timer_lag_seconds", "bad", "60"): "0+1x60",
    BUCKET % ("timer_lag_seconds", "bad", "+Inf"): "0+1x60",
    BUCKET % ("timer_lag_seconds", "good", "10"): "0+1x60",
    BUCKET % ("timer_lag_seconds", "good", "+Inf"): "0+1x60",
    BUCKET % ("commit_duration_seconds", "bad", "0.5"): "0+0x60",
    BUCKET % ("commit_duration_seconds", "bad", "1"): "0+1x60",
    BUCKET % ("commit_duration_seconds", "bad", "+Inf"): "0+1x60",
    BUCKET % ("commit_duration_seconds", "good", "0.5"): "0+1x60",
    BUCKET % ("commit_duration_seconds", "good", "+Inf"): "0+1x60",
    'durably_database_size_bytes{instance="bad",file="wal"}': "2000000000+0x60",
    'durably_database_size_bytes{instance="good",file="wal"}': "4000000+0x60",
    'durably_database_size_bytes{instance="good",file="main"}': "2000000000+0x60",
    'durably_log_up{instance="bad"}': "0x60",
    'durably_log_up{instance="good"}': "1x60",
    'durably_log_leader{job="bad",instance="1"}': "0x60",
    'durably_log_leader{job="good",instance="2"}': "0x60",
    'durably_log_leader{job="good",instance="3"}': "1x60",
    'durably_log_lag_entries{instance="bad"}': "2000x60",
    'durably_log_lag_entries{instance="good"}': "3x60",
    'durably_log_bytes{instance="bad"}': "2000000000x60",
    'durably_log_bytes{instance="good"}': "60000000x60",
    'durably_outbox_oldest_seconds{instance="bad"}': "90x60",
    'durably_outbox_oldest_seconds{instance="good"}': "0x60",
    'durably_outbox_report_age_seconds{instance="good"}': "9x60",
    'durably_outbox_events{instance="bad",state="refused"}': "2x60",
    'durably_outbox_events{instance="good",state="refused"}': "0x60",
    'durably_outbox_events{instance="good",state="waiting"}': "9x60",
    'durably_events_unmatched_total{instance="bad"}': "0+1x60",
    'durably_events_unmatched_total{instance="good"}': "0+0x60",
}
"""Values of an hour. Those with the label ``bad`` raise alerts."""
OF_FUNCTIONS = {"DurablyFunctionFails", "DurablyAppUnreached", "DurablyCallsWait"}
OF_JOBS = {"DurablyNoLeader"}


@NEEDS_PROMTOOL
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_each_alert_is_raised_by_what_it_is_about(rule: dict[str, Any], tmp_path: Path) -> None:
    """promtool evaluates the expression over ``SERIES``. It has a value for the label ``bad``, and for no other."""
    label = "function" if rule["alert"] in OF_FUNCTIONS else "job" if rule["alert"] in OF_JOBS else "instance"
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in SERIES.items()],
        "promql_expr_test": [
            {
                "expr": f"count by (function, instance, job) ({rule['expr']})",
                "eval_time": "30m",
                "exp_samples": [{"labels": f'{{{label}="bad"}}', "value": 1}],
            }
        ],
    }
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
    promtool("test", "rules", file)
