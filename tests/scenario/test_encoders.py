"""A reward model that is an encoder: pairs over HTTP, and a run that attends to its own states."""

import torch
from modeling.test_reward_models import save_encoder
from support.serving import running
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import r2m_client


def test_pairs_are_scored_as_the_class_does_and_a_run_learns(tmp_path):
    save_encoder(tmp_path / "model", segments=2)
    samples = [
        r2m_client.Sample(str(n), "What is the sea?", response, group="g")
        for n, response in enumerate(["It is wide.", "Blue bread.", "The sea is wide and blue."])
    ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        theirs = [
            float(model(**tokenizer(one.prompt, one.response, return_tensors="pt")).logits[0, 0])
            for one in samples
        ]
    with (
        running(tmp_path / "model", tmp_path / "state") as server,
        r2m_client.Client(server.urls["http"]) as client,
    ):
        vanilla = client.score(samples)
        spread = max(theirs) - min(theirs)
        for one, own in zip(vanilla.scores, theirs, strict=True):
            assert abs(one.reward - own) < 1e-5 * spread
        client.create_run("r", feedback="backbone", method={"width": 8})
        client.score(samples, run="r")
        preferred = ("2", "1")
        answer = client.align(
            "r", step=1, groups=[r2m_client.Group("g", samples, preferred=preferred)]
        )
        assert answer.verdict == "accepted", answer.reason
        moved = client.score(samples, run="r", head=answer.head)
        assert [one.vanilla_reward for one in moved.scores] == [
            one.reward for one in vanilla.scores
        ]
