"""Every metric: its name, kind, labels and meaning. docs/metrics.md is made of this.

Units are base units (seconds, bytes); shares are ratios in 0 … 1. Labels come from closed sets, but
for `run`, whose number is bounded (`--metrics-runs`). A head's number is a value, never a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""From a cached text on a GPU to an align on a CPU."""

BATCH_SECONDS = SECONDS[:-2]
ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
TOKENS = tuple(float(1 << n) for n in range(4, 18))
STATE_BYTES = tuple(float(1 << n) for n in range(14, 31, 2))


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as it is exposed: a counter ends in `_total`.
        buckets: upper bounds; of a histogram alone.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CALLED = ("transport", "method")

REQUESTS = Metric(
    "r2m_requests_total", "counter",
    "Calls that are over, by what came of them: ok, cancelled, or the error's code. Each sample of "
    "a ScoreStream counts as one (stream_sample). Probes and scrapes are not counted.",
    (*CALLED, "code"),
)  # fmt: skip
REQUEST_SECONDS = Metric(
    "r2m_request_seconds", "histogram",
    "From a call's head to its answer, its body included; streams have none, their samples do.",
    CALLED, SECONDS,
)  # fmt: skip
STAGE_SECONDS = Metric(
    "r2m_request_stage_seconds", "histogram",
    "Where a call's time went: queue, tokenize, backbone, head, align; as in Server-Timing.",
    (*CALLED, "stage"), SECONDS,
)  # fmt: skip
BATCH_SAMPLES = Metric("r2m_batch_samples", "histogram", "Samples of a batch.", buckets=ITEMS)
BATCH_TOKENS = Metric(
    "r2m_batch_tokens", "histogram",
    "Tokens of a batch's texts, also of those that came from the cache.", buckets=TOKENS,
)  # fmt: skip
BATCH_FEEDBACK = Metric(
    "r2m_batch_feedback_bytes", "histogram",
    "Hidden states of a batch; batches without are not counted.", buckets=STATE_BYTES,
)  # fmt: skip
BATCH_STAGE_SECONDS = Metric(
    "r2m_batch_stage_seconds", "histogram",
    "Time of a batch on the device: backbone, head.", ("stage",), BATCH_SECONDS,
)  # fmt: skip
EVENTS = (
    REQUESTS, REQUEST_SECONDS, STAGE_SECONDS, BATCH_SAMPLES, BATCH_TOKENS, BATCH_FEEDBACK,
    BATCH_STAGE_SECONDS,
)  # fmt: skip

BUILD = Metric("r2m_build_info", "gauge", "1; which program runs.", ("version", "python"))
BACKBONE = Metric(
    "r2m_backbone_info", "gauge", "1; the reward model that is held.",
    ("model", "fingerprint", "dtype", "device"),
)  # fmt: skip
READY = Metric("r2m_ready", "gauge", "1 where calls are taken, as /readyz says it, else 0.")
DEVICE_ALIVE = Metric("r2m_device_alive", "gauge", "1 where the device thread works, else 0.")
REGISTRY = Metric(
    "r2m_registry_reachable", "gauge",
    "1 where the registry answered this scrape, else 0: then there is nothing of runs.",
)  # fmt: skip
BYTES_USED = Metric("r2m_inflight_bytes", "gauge", "Bytes of requests held now.")
BYTES_LIMIT = Metric("r2m_inflight_limit_bytes", "gauge", "The bound of them (--inflight-bytes).")
REQUESTS_USED = Metric("r2m_inflight_requests", "gauge", "Requests in hand now, streams aside.")
REQUESTS_LIMIT = Metric(
    "r2m_inflight_limit_requests", "gauge", "The bound of them (--inflight-requests)."
)
QUEUE_USED = Metric("r2m_queue_samples", "gauge", "Samples in line for the device now.")
QUEUE_LIMIT = Metric("r2m_queue_limit_samples", "gauge", "The bound of them (--queue-samples).")
BUFFERS = Metric(
    "r2m_buffer_kept_bytes", "gauge", "Memory for hidden states that is kept and not in use."
)
REFUSED = Metric(
    "r2m_refused_total", "counter",
    "Calls refused because a bound was reached: inflight_bytes, inflight_requests, queue_samples.",
    ("reason",),
)  # fmt: skip
CACHE_HITS = Metric(
    "r2m_cache_hits_total", "counter", "Found in the cache: embeddings, heads.", ("cache",)
)
CACHE_MISSES = Metric("r2m_cache_misses_total", "counter", "Not found in the cache.", ("cache",))
CACHE_BYTES = Metric("r2m_cache_bytes", "gauge", "What the cache holds.", ("cache",))
CACHE_LIMIT = Metric("r2m_cache_limit_bytes", "gauge", "What it may hold.", ("cache",))
BACKBONE_TOKENS = Metric(
    "r2m_backbone_tokens_total", "counter",
    "Tokens that the backbone has read: text, and padding beside it.", ("kind",),
)  # fmt: skip
DEVICE_MEMORY = Metric(
    "r2m_device_memory_bytes", "gauge",
    "Memory of a GPU: allocated, reserved, total. (Of a CPU: process_resident_memory_bytes.)",
    ("kind",),
)  # fmt: skip
SAMPLES = Metric(
    "r2m_samples_total", "counter",
    "Samples scored, of all runs and of none, the warm-up's one included; failed: without a "
    "reward.",
    ("result",),
)  # fmt: skip
SAMPLE_ERRORS = Metric(
    "r2m_sample_errors_total", "counter",
    "Samples that could not be used, at score and at align, by the error's code.", ("code",),
)  # fmt: skip
RUNS = Metric(
    "r2m_runs", "gauge",
    "Runs of the registry: open, frozen, archived, foreign (made on another backbone).", ("state",),
)  # fmt: skip
RUNS_LEFT_OUT = Metric(
    "r2m_runs_left_out", "gauge",
    "Runs, open or frozen, that have no r2m_run_ metrics: there are more than --metrics-runs.",
)  # fmt: skip
SERVER = (
    BUILD, BACKBONE, READY, DEVICE_ALIVE, REGISTRY, BYTES_USED, BYTES_LIMIT, REQUESTS_USED,
    REQUESTS_LIMIT, QUEUE_USED, QUEUE_LIMIT, BUFFERS, REFUSED, CACHE_HITS, CACHE_MISSES,
    CACHE_BYTES, CACHE_LIMIT, BACKBONE_TOKENS, DEVICE_MEMORY, SAMPLES, SAMPLE_ERRORS, RUNS,
    RUNS_LEFT_OUT,
)  # fmt: skip


def _of_run(name: str, help: str, *labels: str, kind: Kind = "gauge") -> Metric:
    return Metric(f"r2m_run_{name}", kind, help, ("run", *labels))


RUN_INFO = _of_run("info", "1; what kind of run it is.", "feedback", "profile")
RUN_SAMPLES = _of_run(
    "samples_total", "Samples scored by this process; failed: without a reward.", "result",
    kind="counter",
)  # fmt: skip
RUN_TOKENS = _of_run("tokens_total", "Tokens of their texts.", kind="counter")
RUN_FEEDBACK = _of_run(
    "feedback_bytes_total", "Bytes that its feedback took, both ways.", kind="counter"
)
RUN_DEVICE = _of_run("device_seconds_total", "Its share of the device's time.", kind="counter")
RUN_REWARD_MEAN = _of_run(
    "reward_mean", "Mean reward of the process's last 1024 samples, weighed exponentially: by the "
    "head (fused), and by the frozen model (vanilla).", "kind",
)  # fmt: skip
RUN_REWARD_DEVIATION = _of_run(
    "reward_standard_deviation", "Their standard deviation, over groups and within.", "kind"
)
RUN_REWARD_CORRELATION = _of_run(
    "reward_vanilla_correlation", "Pearson's correlation of the two rewards, likewise."
)
RUN_ALIGNS = _of_run(
    "aligns_total", "Steps that this process answered, by verdict; retries are not counted.",
    "verdict", kind="counter",
)  # fmt: skip
RUN_STEP = _of_run("step", "The last step answered, on the current branch.")
RUN_BRANCHES = _of_run("branches", "Branches; every rollback adds one.")
RUN_HEAD = _of_run(
    "head", "Number of the version that an alias of the server's points at: live, previous, "
    "candidate, reference.", "alias",
)  # fmt: skip
RUN_HEAD_AGE = _of_run("head_age_steps", "Steps answered since the live head was made.")
RUN_UPDATES = _of_run("head_updates", "Accepted updates behind the live head (t).")
RUN_OMEGA = _of_run("omega_ratio", "ω of the live head: 1 is the vanilla reward.")
RUN_FROZEN = _of_run("frozen", "1 where aligns change nothing until somebody lifts it, else 0.")
RUN_REJECTIONS = _of_run("rejections", "Candidates rejected in a row, on the current branch.")
RUN_LOSS = _of_run(
    "loss", "Of the last step that made a candidate, before its update: bt, gre, kl, total.", "term"
)
RUN_SIGMA = _of_run("group_sigma", "Mean within-group standard deviation of the rewards, there.")
RUN_GRADIENT = _of_run("gradient_norm", "Norm of the gradient, there.")
RUN_DRIFT_SPREAD = _of_run(
    "drift_spread_ratio", "Spread of the candidate over that of the reference head: the gate's."
)
RUN_DRIFT_RANK = _of_run(
    "drift_rank_correlation",
    "Rank correlation of the candidate and the reference head: the gate's.",
)
RUN_SPREAD = _of_run("spread_ratio", "Spread of the candidate over that of version 0.")
RUN_RANK = _of_run("rank_correlation", "Rank correlation of the candidate and version 0.")
RUN_LENGTH = _of_run("length_correlation", "Rank correlation of reward and tokens, within groups.")
RUN_GAIN = _of_run(
    "feedback_gain_ratio", "How much another sample's hidden states would change the rewards, over "
    "their spread.",
)  # fmt: skip
RUN_VANILLA = _of_run(
    "vanilla_agreement_ratio", "Share of pseudo labels that the vanilla reward shares."
)
RUN_LABEL = _of_run(
    "label_agreement_ratio", "Share of the step's outside labels that the reward shares."
)
RUN_UNUSABLE = _of_run("unusable_groups_ratio", "Share of the step's groups that were left out.")
RUN_ACCURACY = _of_run(
    "anchor_accuracy_ratio", "Accuracy on the anchors at their last look: of the candidate, of the "
    "reference head, and of live as it was left by that step.", "head",
)  # fmt: skip
RUN_ACCURACY_LOW = _of_run(
    "anchor_accuracy_low_ratio", "Lower end of the 95 % interval of the same.", "head"
)
RUN_ACCURACY_HIGH = _of_run("anchor_accuracy_high_ratio", "Upper end of it.", "head")
RUN_PAIRS = _of_run("anchor_pairs", "Pairs that were judged at that look.")
RUN_LOOKS = _of_run("anchor_looks", "How often the present anchors have judged.")
RUN_LABELS = _of_run(
    "labels_total", "Outside labels that this process took, by use: train, judge.", "use",
    kind="counter",
)  # fmt: skip
RUN_WAITING = _of_run("labels_waiting", "Marked samples that have no label yet.")
RUN_JUDGED = _of_run("labels_judged", "Grades that went into the audited gap, its baseline's too.")
RUN_GAP = _of_run(
    "audited_gap", "z(reward) - z(grade), mean of the last whole window of judged labels."
)
RUN_CUSUM = _of_run("audited_gap_cusum", "Its one-sided CUSUM: 3 is the warning, 5 the alarm.")
RUN_STOPPED = _of_run(
    "audited_gap_alarm", "1 from the alarm on until somebody lifts it (advice: stop), else 0."
)
RUN_CONTROL_PAIRS = _of_run(
    "control_pairs", "Outside labels that the live line and a control were both asked of, before "
    "either learnt from them.", "control",
)  # fmt: skip
RUN_CONTROL_HEAD = _of_run(
    "control_head_accuracy_ratio", "Share of them that the live line had right.", "control"
)
RUN_CONTROL_ACCURACY = _of_run(
    "control_accuracy_ratio", "Share of them that the control had right.", "control"
)
RUN_CONTROL_DIFFERENCE = _of_run(
    "control_difference", "The live line's share less the control's.", "control"
)
RUN_CONTROL_LOW = _of_run(
    "control_difference_low", "Lower end of its 95 % interval, good at every look.", "control"
)
RUN_CONTROL_HIGH = _of_run("control_difference_high", "Upper end of it.", "control")
RUN_CONTROL_VERDICT = _of_run(
    "control_verdict", "1: the run's feedback pays; -1: the control is better; 0: no difference "
    "yet. Absent: too few pairs, or no such control.", "control",
)  # fmt: skip
RUN = (
    RUN_INFO, RUN_SAMPLES, RUN_TOKENS, RUN_FEEDBACK, RUN_DEVICE, RUN_REWARD_MEAN,
    RUN_REWARD_DEVIATION, RUN_REWARD_CORRELATION, RUN_ALIGNS, RUN_STEP, RUN_BRANCHES, RUN_HEAD,
    RUN_HEAD_AGE, RUN_UPDATES, RUN_OMEGA, RUN_FROZEN, RUN_REJECTIONS, RUN_LOSS, RUN_SIGMA,
    RUN_GRADIENT, RUN_DRIFT_SPREAD, RUN_DRIFT_RANK, RUN_SPREAD, RUN_RANK, RUN_LENGTH, RUN_GAIN,
    RUN_VANILLA, RUN_LABEL, RUN_UNUSABLE, RUN_ACCURACY, RUN_ACCURACY_LOW, RUN_ACCURACY_HIGH,
    RUN_PAIRS, RUN_LOOKS, RUN_LABELS, RUN_WAITING, RUN_JUDGED, RUN_GAP, RUN_CUSUM, RUN_STOPPED,
    RUN_CONTROL_PAIRS, RUN_CONTROL_HEAD, RUN_CONTROL_ACCURACY, RUN_CONTROL_DIFFERENCE,
    RUN_CONTROL_LOW, RUN_CONTROL_HIGH, RUN_CONTROL_VERDICT,
)  # fmt: skip

CATALOGUE = {
    "Calls and batches": EVENTS,
    "The server": SERVER,
    "Runs": RUN,
}
