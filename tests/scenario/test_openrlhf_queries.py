"""/get_reward against OpenRLHF's own server: the same query, the same tokens, the same reward.

The oracle is written from that server: its `strip_sequence` (releases up to 0.8.2), its tokenizer's
call, and the model class's own forward in float32 over one unpadded row.
"""

import contextlib
import dataclasses
import pathlib
import re

import httpx
import pytest
import torch
from support.classifiers import save_tiny
from support.models import MAX_LENGTH, save_reward_model, tokenizer
from support.serving import running
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from r2m_client import Client, Sample

PROMPT = "<|user|>\nWhat is the capital of France?\n<|assistant|>\n"
LONG = "the sea is wide and blue " * 40


@dataclasses.dataclass
class World:
    """A model, its server, and what the oracle reads it with."""

    folder: pathlib.Path
    urls: dict[str, str]

    @property
    def url(self):
        return self.urls["http"]

    def tokenizer(self):
        read = AutoTokenizer.from_pretrained(self.folder)
        if read.pad_token is None:  # as OpenRLHF's get_tokenizer does
            read.pad_token = read.eos_token
        return read

    def reward(self, text, *, special=False):
        ids = self.tokenizer()(
            text, add_special_tokens=special, truncation=True, max_length=MAX_LENGTH
        )["input_ids"]
        model = AutoModelForSequenceClassification.from_pretrained(
            self.folder, dtype=torch.float32
        ).eval()
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits.item()

    def one_eos(self, text):
        read = self.tokenizer()
        ends = f"({re.escape(read.eos_token)}|{re.escape(read.pad_token)})+"
        return re.sub(f"{ends}$", "", re.sub(f"^{ends}", "", text)) + read.eos_token

    def asked(self, queries, prompts=None):
        answer = httpx.post(
            f"{self.url}/get_reward",
            json={"query": queries, "prompts": prompts or [""] * len(queries)},
            timeout=60,
        )
        assert answer.is_success, answer.text
        return answer.json()["rewards"]


def save(folder, pad):
    """A model whose tokenizer adds a BOS to every text, as Llama's does."""
    save_reward_model(folder, pad_token_id={"<pad>": 0, "</s>": 2, None: None}[pad])
    read = tokenizer()
    read.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", read.bos_token_id)]
    )
    read.pad_token = pad
    read.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("a")["input_ids"][0] == again.bos_token_id
    assert again.pad_token == pad
    return folder


@contextlib.contextmanager
def world(folder, **settings):
    with running(folder, folder / "state", batch_items=1, **settings) as server:
        yield World(folder, server.urls)


@pytest.fixture(scope="module", params=["<pad>", "</s>", None], ids=["pad", "pad is eos", "no pad"])
def served(request, tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("adds-bos") / "model", request.param)
    with world(folder, get_reward_text="one-eos") as one:
        yield one


QUERIES = {
    "plain": f"{PROMPT}Paris.",
    "eos": f"{PROMPT}Paris.</s>",
    "pads": f"{PROMPT}Paris.<pad><pad><pad>",
    "eos and pads": f"{PROMPT}Paris.</s><pad><pad>",
    "several eos": f"{PROMPT}Paris.</s></s></s>",
    "pads before": f"<pad><pad>{PROMPT}Paris.</s>",
    "bos": f"<s>{PROMPT}Paris.</s>",
    "a line behind": f"{PROMPT}Paris.</s>\n",
    "eos alone": "</s>",
    "empty": "",
    "blank": " ",
    "too long": f"{PROMPT}{LONG}</s>",
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_has_the_reward_of_openrlhf_s_own_server(served, name):
    query = QUERIES[name]
    (reward,) = served.asked([query])
    assert reward == pytest.approx(served.reward(served.one_eos(query)), abs=1e-5)


def test_the_prompt_that_says_where_a_response_starts_changes_no_reward(served):
    for query in QUERIES.values():
        assert served.asked([query], [PROMPT]) == served.asked([query])


def test_the_difference_is_more_than_rounding(served):
    """So the tests above would fail on the tokenizer's own special tokens, and on no eos."""
    query = QUERIES["plain"]
    right = served.reward(served.one_eos(query))
    assert abs(served.reward(served.one_eos(query), special=True) - right) > 1e-3
    # A class whose pad is its eos reads the token before it.
    config = AutoConfig.from_pretrained(served.folder)
    reads_eos = config.pad_token_id != config.eos_token_id
    assert (abs(served.reward(query) - right) > 1e-3) == reads_eos


def test_llama_factory_s_texts_have_the_rewards_of_its_own_server(served):
    """It adds no special tokens, either, and cuts on the right; it leaves pads and eos alone."""
    texts = [QUERIES[name] for name in ("plain", "eos", "bos", "too long")]
    body = {"model": "model", "messages": texts}
    answer = httpx.post(f"{served.url}/v1/score/evaluation", json=body, timeout=60).json()
    assert answer["scores"] == pytest.approx([served.reward(one) for one in texts], abs=1e-5)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_other_routes_go_on_adding_what_the_tokenizer_adds(served, kind):
    query = QUERIES["eos"]
    answer = httpx.post(f"{served.url}/classify", json={"input": query}).json()
    with_bos = served.reward(query, special=True)
    assert answer["data"][0]["probs"][0] == pytest.approx(with_bos, abs=1e-5)
    body = {"input": query, "add_special_tokens": False}
    answer = httpx.post(f"{served.url}/classify", json=body).json()
    assert answer["data"][0]["probs"][0] == pytest.approx(served.reward(query), abs=1e-5)
    with Client(served.urls[kind], retries=0) as client:
        scored = client.score(
            [
                Sample("own", "", query, format="raw"),
                Sample("bare", "", query, format="raw", special_tokens=False),
            ]
        )
        refused = client.score([Sample("chat", "a", "b", special_tokens=False)]).scores[0].error
    assert scored.rewards == pytest.approx([with_bos, served.reward(query)], abs=1e-5)
    assert refused is not None
    assert (refused.code, refused.field) == ("text_invalid", "special_tokens")


def test_by_default_a_query_is_taken_as_it_is_and_the_setting_chooses(tmp_path):
    """As its server since 0.8.3 does."""
    folder = save(tmp_path / "model", "<pad>")
    for kind, text, special in (
        ("as-is", QUERIES["plain"], False),
        ("as-is", QUERIES["eos"], False),
        ("tokenizer", QUERIES["plain"], True),
        ("tokenizer", QUERIES["eos"], True),
    ):
        settings = {} if kind == "as-is" else {"get_reward_text": kind}
        with world(folder, **settings) as one:
            (reward,) = one.asked([text])
            assert reward == pytest.approx(one.reward(text, special=special), abs=1e-5)
            long = QUERIES["too long"]
            if special:
                refused = httpx.post(f"{one.url}/get_reward", json={"query": [long]})
                assert refused.json()["error"]["code"] == "text_too_long"
            else:
                assert one.asked([long]) == pytest.approx([one.reward(long)], abs=1e-5)


def test_an_encoder_reads_the_special_tokens_that_its_class_pools(tmp_path):
    """Neither trainer's server has one, and without them it would read another token's state."""
    folder = save_tiny("bert", tmp_path / "model")
    with world(folder) as one:
        right = one.reward("It is wide.", special=True)
        assert one.asked(["It is wide."]) == pytest.approx([right], abs=1e-5)
        body = {"messages": ["It is wide."]}
        answer = httpx.post(f"{one.url}/v1/score/evaluation", json=body, timeout=60).json()
        assert answer["scores"] == pytest.approx([right], abs=1e-5)
        assert abs(one.reward("It is wide.") - right) > 1e-3
