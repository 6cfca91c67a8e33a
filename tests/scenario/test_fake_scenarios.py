"""The scenarios over the fake: the same stories, all but the numbers.

The cases are those of the modules below, run with this module's `client`. A new scenario there runs
here by itself; one that rests on the real model's numbers is named in `REAL_ONLY` with the reason.
"""

import inspect

import pytest
import test_anchors_judge
import test_main_job
import test_more_calls
import test_outside_labels
from support.fakes import fake_server
from test_anchors_judge import run
from test_more_calls import trained

__all__ = ["run", "trained"]

NUMBERS = "its verdict rests on the model's numbers; the fake's verdicts are the test's"
REAL_ONLY = {
    "test_a_candidate_whose_rewards_overflow_never_goes_live": NUMBERS,
    "test_a_candidate_is_judged_where_anchors_are_due": NUMBERS,
    "test_too_few_pairs_are_undecided_and_never_accepted": NUMBERS,
    "test_harm_is_rejected_and_freezes_the_run": NUMBERS,
    "test_harm_done_between_looks_freezes_at_the_next_one": NUMBERS,
    "test_the_reference_moves_only_to_what_is_proved_better": NUMBERS,
    "test_evidence_comes_along": "the fake asks for no reward with another sample's states",
    "test_the_audited_gap_warns_stops_and_freezes": "the fake's advice is the test's",
}
VERDICTS = {
    "test_a_candidate_that_drifts_too_far_is_rejected_and_live_stays": "rejected",
    "test_reference_cannot_be_a_rejected_head": "rejected",
}

for module in (test_main_job, test_more_calls, test_anchors_judge, test_outside_labels):
    for name, case in vars(module).items():
        arguments = inspect.signature(case).parameters if name.startswith("test_") else {}
        if "client" in arguments and "server" not in arguments and name not in REAL_ONLY:
            assert name not in globals(), f"two scenarios are called {name}"
            globals()[name] = case


@pytest.fixture
def client(request):
    given = getattr(request.node, "callspec", None)
    without_states = given is not None and given.params.get("feedback") == "none"
    server = fake_server(
        omega=1.0 if without_states else 0.6,
        verdict=VERDICTS.get(request.node.originalname, "accepted"),
    )
    with server.client(wire_dtype="float32", retries=0) as one:
        yield one
