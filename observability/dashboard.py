"""Write the Grafana dashboard, r2m.json: import it, and choose the Prometheus that scrapes.

python observability/dashboard.py            # write it
python observability/dashboard.py --check    # fail where it is out of date
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)

FILE = Path(__file__).resolve().parent / "r2m.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
SERVER: Final = 'instance=~"$instance"'
RUN: Final = f'{SERVER},run=~"$run"'
SCORES: Final = 'method=~"score|stream_sample"'

Query = tuple[str, str]
"""An expression, and what its lines are called."""


def panel(title: str, about: str, unit: str, *queries: Query, height: int = 8) -> timeseries.Panel:
    """Lines over time, a third of the width."""
    made = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .height(height)
        .span(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    for place, (expression, legend) in enumerate(queries):
        made = made.with_target(
            prometheus.Dataquery()
            .datasource(SOURCE)
            .expr(expression)
            .legend_format(legend)
            .ref_id(chr(ord("A") + place))
        )
    return made


def of_run(name: str, legend: str = "{{run}}", *, more: str = "", over: str = "max") -> Query:
    """A gauge of runs: one line for each value of the labels that the legend names.

    Args:
        over: the aggregation over replicas, which all export the same runs: `max` of what they read
            from one registry, `avg` of what each counts by itself.
    """
    by = ", ".join(re.findall(r"{{(\w+)}}", legend))
    return f"{over} by ({by}) (r2m_run_{name}{{{RUN}{more}}})", legend


def rate(metric: str, by: str, where: str = SERVER) -> str:
    """What comes a second, summed."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str, where: str = SERVER) -> str:
    """A quantile of a histogram."""
    inner = rate(f"{metric}_bucket", f"{by}, le" if by else "le", where)
    return f"histogram_quantile({q}, {inner})"


def mean(metric: str, where: str = SERVER) -> str:
    """The mean of a histogram's observations."""
    return (
        f"{rate(f'{metric}_sum', 'instance', where)} / {rate(f'{metric}_count', 'instance', where)}"
    )


Panels = tuple[timeseries.Panel, ...]


def traffic() -> Panels:
    """Who calls, what is refused, what is held."""
    return (
        panel("Calls", "Each sample of a ScoreStream is one.", "reqps",
              (rate("r2m_requests_total", "transport, method"), "{{transport}} {{method}}")),
        panel("Calls without an answer", "By the error's code; docs/errors.md.", "reqps",
              (rate("r2m_requests_total", "code", f'{SERVER},code!="ok"'), "{{code}}")),
        panel("Refused", "By the bound that was reached.", "reqps",
              (rate("r2m_refused_total", "reason"), "{{reason}}")),
        panel("Samples", "Scored, of all runs and of none.", "cps",
              (rate("r2m_samples_total", "result"), "{{result}}")),
        panel("Samples that could not be used", "By the error's code.", "cps",
              (rate("r2m_sample_errors_total", "code"), "{{code}}")),
        panel("Held, of what may be held", "1: calls are refused.", "percentunit",
              (f"r2m_inflight_bytes{{{SERVER}}} / r2m_inflight_limit_bytes", "bytes {{instance}}"),
              (f"r2m_inflight_requests{{{SERVER}}} / r2m_inflight_limit_requests",
               "requests {{instance}}"),
              (f"r2m_queue_samples{{{SERVER}}} / r2m_queue_limit_samples", "queue {{instance}}")),
    )  # fmt: skip


def latency() -> Panels:
    """How long calls take, and where the time goes."""
    scores = f"{SERVER},{SCORES}"
    return (
        panel("Score", "Calls and samples of streams.", "s",
              *((quantile(q, "r2m_request_seconds", "", scores), f"p{100 * q:g}")
                for q in (0.5, 0.9, 0.99))),
        panel("Score by stage", "p99; queue is the wait for the device.", "s",
              (quantile(0.99, "r2m_request_stage_seconds", "stage", scores), "{{stage}}")),
        panel("Align", "With what it waits for: other aligns, and the device.", "s",
              *((quantile(q, "r2m_request_seconds", "", f'{SERVER},method=~"align|align_stream"'),
                 f"p{100 * q:g}") for q in (0.5, 0.99))),
    )  # fmt: skip


def batching() -> Panels:
    """How well the device is used."""
    padding = rate("r2m_backbone_tokens_total", "instance", f'{SERVER},kind="padding"')
    hits, misses = (rate(f"r2m_cache_{what}_total", "cache") for what in ("hits", "misses"))
    return (
        panel("Samples a batch", "Batches grow when the device is busy.", "none",
              (mean("r2m_batch_samples"), "mean {{instance}}"),
              (quantile(0.99, "r2m_batch_samples", ""), "p99")),
        panel("Tokens a batch", "Of texts; --token-budget bounds it with padding.", "none",
              (mean("r2m_batch_tokens"), "mean {{instance}}"),
              (quantile(0.99, "r2m_batch_tokens", ""), "p99")),
        panel("Seconds of a batch", "Mean, by stage.", "s",
              *((mean("r2m_batch_stage_seconds", f'{SERVER},stage="{stage}"'),
                 f"{stage} {{{{instance}}}}") for stage in ("backbone", "head"))),
        panel("Padding", "Share of the tokens the backbone reads.", "percentunit",
              (f"{padding} / {rate('r2m_backbone_tokens_total', 'instance')}", "{{instance}}")),
        panel("Cache hits", "Embeddings: align finds what score left.", "percentunit",
              (f"{hits} / ({hits} + {misses})", "{{cache}}")),
        panel("Memory", "Of the device where it is a GPU, else of the process.", "bytes",
              (f"r2m_device_memory_bytes{{{SERVER}}}", "{{instance}} {{kind}}"),
              (f"process_resident_memory_bytes{{{SERVER}}} and on (instance) r2m_ready",
               "{{instance}} process"),
              (f"r2m_cache_bytes{{{SERVER}}}", "{{instance}} cache of {{cache}}")),
    )  # fmt: skip


def learning() -> Panels:
    """What the runs do and are worth."""
    return (
        panel("Steps", "Answered, by verdict.", "cps",
              (rate("r2m_run_aligns_total", "run, verdict", RUN), "{{run}} {{verdict}}")),
        panel("Reward, fused and vanilla", "Means of the last 1024 samples. Fused alone rising is "
              "what over-optimisation looks like.", "none",
              of_run("reward_mean", "{{run}} {{kind}}", over="avg")),
        panel("Spread of the rewards", "Standard deviation of the same.", "none",
              of_run("reward_standard_deviation", "{{run}} {{kind}}", over="avg")),
        panel("Loss", "Before the update.", "none", of_run("loss", "{{run}} {{term}}")),
        panel("Group σ", "Within groups: what advantages are made of.", "none",
              of_run("group_sigma")),
        panel("Gradient norm", "Before it is cut.", "none", of_run("gradient_norm")),
        panel("Accuracy on the anchors", "Of live, with its 95 % interval. Below 0.55 it is hardly "
              "better than a coin.", "percentunit",
              of_run("anchor_accuracy_ratio", more=',head="live"'),
              of_run("anchor_accuracy_low_ratio", "{{run}} low", more=',head="live"'),
              of_run("anchor_accuracy_high_ratio", "{{run}} high", more=',head="live"')),
        panel("Agreement", "Of pseudo labels with vanilla; of outside labels with the reward.",
              "percentunit", of_run("vanilla_agreement_ratio", "{{run}} vanilla"),
              of_run("label_agreement_ratio", "{{run}} labels")),
        panel("Does feedback pay?", "Accuracy on new outside labels, live less each control, with "
              "an interval that is good at every look. Above 0: it pays.", "none",
              of_run("control_difference", "{{run}} less {{control}}"),
              of_run("control_difference_low", "{{run}} less {{control}} low"),
              of_run("control_difference_high", "{{run}} less {{control}} high")),
        panel("Labels", "Taken a second, and marked samples that wait for one.", "none",
              (rate("r2m_run_labels_total", "run, use", RUN), "{{run}} {{use}}"),
              of_run("labels_waiting", "{{run}} waiting")),
    )  # fmt: skip


def drift() -> Panels:
    """Whether rewards run away from what people want."""
    return (
        panel("Audited gap, CUSUM", "Warning at 3, alarm at 5: a reason to read samples "
              "(docs/operations.md).", "none", of_run("audited_gap_cusum")),
        panel("Audited gap", "z(reward) - z(grade), by window.", "none", of_run("audited_gap")),
        panel("Spread ratio", "Of the candidate to version 0; above 2 look closely.", "none",
              of_run("spread_ratio"), of_run("drift_spread_ratio", "{{run}} to reference")),
        panel("Rank correlation", "With version 0: says that the head has moved, not that it is "
              "wrong.", "none", of_run("rank_correlation"),
              of_run("drift_rank_correlation", "{{run}} with reference")),
        panel("Length correlation", "Information, no alarm.", "none", of_run("length_correlation")),
        panel("Feedback gain", "What other hidden states would change. Information, no alarm.",
              "none", of_run("feedback_gain_ratio")),
    )  # fmt: skip


def heads() -> Panels:
    """Versions, and what stops them."""
    return (
        panel("Live head", "Its number.", "none", of_run("head", more=',alias="live"')),
        panel("Head age", "Steps answered since live was made.", "none", of_run("head_age_steps")),
        panel("ω", "1 is the vanilla reward.", "none", of_run("omega_ratio")),
        panel("Rejected in a row", "", "none", of_run("rejections")),
        panel("Frozen", "1: aligns change nothing.", "none", of_run("frozen")),
        panel("Ready", "1: calls are taken.", "none", (f"r2m_ready{{{SERVER}}}", "{{instance}}"),
              (f"r2m_registry_reachable{{{SERVER}}}", "registry of {{instance}}")),
    )  # fmt: skip


ROWS = {
    "Traffic": traffic,
    "Latency": latency,
    "Batching": batching,
    "Learning": learning,
    "Drift": drift,
    "Heads": heads,
}


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """One that is filled from a label, all its values chosen."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def page() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("R2M Serve")
        .uid("r2m-serve")
        .description("Generated by observability/dashboard.py.")
        .tags(["r2m"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("source").label("Source").type("prometheus"))
        .with_variable(variable("instance", "Server", "label_values(r2m_ready, instance)"))
        .with_variable(
            variable("run", "Run", 'label_values(r2m_run_info{instance=~"$instance"}, run)')
        )
    )
    ids = itertools.count(1)
    for title, panels in ROWS.items():
        made = made.with_row(dashboard.Row(title).id(next(ids)))
        for one in panels():
            made = made.with_panel(one.id(next(ids)))
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def main() -> int:
    """Write or compare; 1 where it is out of date."""
    text = page()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text)
    elif not FILE.exists() or FILE.read_text() != text:
        print(f"out of date: observability/{FILE.name}; run make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
