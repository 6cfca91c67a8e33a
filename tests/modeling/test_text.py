"""Texts to token ids: what a cut keeps, which template is used, and which day it writes."""

import json
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import models
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from r2m_service.modeling import text as text_module
from r2m_service.modeling.loading import ModelRefusedError, load_backbone
from r2m_service.modeling.text import TextEncoder, TextError, TextFault

LENGTH = 24
MARGIN = 256
SPECIAL = ["<pad>", "<s>", "</s>"]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(pre_tokenizer, alphabet):
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizer
    made.train_from_iterator(
        models.CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<unk>", *SPECIAL], initial_alphabet=alphabet
        ),
    )
    return made


def byte_level():
    """As Llama 3's: words by a regular expression, then bytes; a BOS is added."""
    return trained(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        pre_tokenizers.ByteLevel.alphabet(),
    )


def sentence_piece():
    """As Llama 2's: no words at all, the spaces are letters; a BOS is added."""
    model = json.loads(trained(pre_tokenizers.Metaspace(), []).to_str())["model"]
    vocabulary = model["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(one) for one in model["merges"]]
    made = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.add_special_tokens(SPECIAL)
    return made


def tokenizer(make, *, adds="<s> $A"):
    inner = make()
    bos, eos = (inner.token_to_id(one) for one in SPECIAL[1:])
    inner.post_processor = TemplateProcessing(
        single=adds, special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=models.TEMPLATE,
        model_max_length=LENGTH,
    )


@pytest.fixture(
    scope="module",
    params=[(byte_level, "<s> $A"), (byte_level, "<s> $A </s>"), (sentence_piece, "<s> $A")],
    ids=["bytes", "bytes, eos added", "no words"],
)
def both(request):
    """An encoder, and the same tokenizer apart: its own truncation is the oracle."""
    make, adds = request.param
    # Small, so that texts far beyond it are quickly tokenized whole by the oracle.
    text_module.MARGIN, before = MARGIN, text_module.MARGIN
    yield TextEncoder(tokenizer(make, adds=adds), LENGTH, 1000), tokenizer(make, adds=adds)
    text_module.MARGIN = before


WORDS = st.sampled_from(
    [
        *("the", "quick", "France", "Paris?", "don't", "1234567", "3.14", "Ünïcödé", "你好，世界"),
        *("🙂", "e.g.", "x=1;", "</s>", "\n\n", "\t"),
    ]
)
PASSAGES = st.tuples(
    st.lists(WORDS | st.text(max_size=8), max_size=12).map(" ".join), st.integers(1, 120)
).map(lambda both: (both[0] + " and bread ") * both[1])
EDGES = st.integers(0, 40).map(lambda count: "fox " * count)


@pytest.mark.parametrize("side", ["left", "right"])
@given(text=PASSAGES | EDGES)
def test_a_cut_keeps_what_the_tokenizer_s_own_truncation_keeps(both, side, text):
    encoder, own = both
    own.truncation_side = side
    if not text or text.startswith("<s>"):
        return
    expected = own(text, truncation=True, max_length=LENGTH)["input_ids"]
    whole = own(text)["input_ids"]
    found = encoder.pair("", text, raw=True, cut=side)
    assert list(found.ids) == expected
    if len(text) <= encoder._max_characters + MARGIN:
        assert found.cut == len(whole) - len(expected)
    else:
        assert found.cut == pytest.approx(len(whole) - LENGTH, rel=0.5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", range(200, 208))
def test_a_cut_within_a_long_word_is_as_in_the_whole_text(side, length):
    """A run of one letter is cut into eights from its start: half a run has other tokens."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {one: place for place, one in enumerate([*SPECIAL, *sorted(alphabet)])}
    merges = [("a" * half, "a" * half) for half in (1, 2, 4)]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)

    def make():
        made = Tokenizer(BPE(vocabulary, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.add_special_tokens(SPECIAL)
        return made

    own = tokenizer(make)
    own.truncation_side = side
    text = " ".join(["a" * length] * 200)
    whole = own(text)["input_ids"]
    found = TextEncoder(tokenizer(make), LENGTH, 1000).pair("", text, raw=True, cut=side)
    assert list(found.ids) == own(text, truncation=True, max_length=LENGTH)["input_ids"]
    assert found.cut == pytest.approx(len(whole) - LENGTH, rel=0.1)


@given(text=PASSAGES)
def test_a_left_cut_of_a_conversation_keeps_the_bos_of_its_template(both, text):
    encoder, own = both
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    whole = own.apply_chat_template(turns)["input_ids"]
    over = max(len(whole) - LENGTH, 0)
    left = encoder.pair(text, text, cut="left").ids
    assert list(left) == whole[:1] + whole[over + 1 :]
    assert left[0] == own.bos_token_id
    assert encoder.conversation(turns, cut="left").ids == left
    assert list(encoder.pair(text, text, cut="right").ids) == whole[:LENGTH]


def test_a_cut_of_token_ids_keeps_a_bos_and_counts(both):
    encoder, own = both
    ids = [own.bos_token_id, *range(10, 50)]
    left = encoder.ids(ids, cut="left")
    assert left.ids == (own.bos_token_id, *range(50 - LENGTH + 1, 50))
    assert left.cut == len(ids) - LENGTH
    assert encoder.ids(ids[1:], cut="left").ids == tuple(range(50 - LENGTH, 50))
    assert encoder.ids(ids, cut="right").ids == tuple(ids[:LENGTH])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("unbroken", [True, False])
def test_a_cut_tokenizes_no_more_than_it_can_keep(both, side, unbroken, monkeypatch):
    """A hundred megabytes would take minutes and gigabytes, on the thread that all share."""
    encoder, own = both
    tokenized = []
    ids_of = encoder._ids
    monkeypatch.setattr(
        encoder, "_ids", lambda text, **more: tokenized.append(text) or ids_of(text, **more)
    )
    text = ("x" if unbroken else "hello, world ") * 1_000_000
    for found in (
        encoder.pair("", text, raw=True, cut=side),
        encoder.pair("Hi", text, cut=side),
    ):
        assert len(found.ids) == LENGTH
        assert found.ids[0] == own.bos_token_id
        assert found.cut > 100_000
    assert max(map(len, tokenized)) <= encoder._max_characters + MARGIN


@pytest.mark.parametrize("format", ["raw", "chat", "conversation"])
def test_an_empty_response_is_scored_where_the_caller_allows_it(both, format):
    _, own = both
    encoder = TextEncoder(own, 4 * LENGTH, 1000)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]

    def encoded(**more):
        if format == "conversation":
            return encoder.conversation(turns, **more).ids
        return encoder.pair("Hi", "", raw=format == "raw", **more).ids

    expected = own("Hi") if format == "raw" else own.apply_chat_template(turns)
    assert list(encoded(empty=True)) == expected["input_ids"]
    with pytest.raises(TextError) as caught:
        encoded()
    assert caught.value.fault == TextFault.EMPTY


def test_no_text_at_all_has_no_reward(both):
    encoder, _ = both
    for refused in (
        lambda: encoder.pair("", "", raw=True, empty=True),
        lambda: encoder.pair("", "", empty=True),
        lambda: encoder.pair("", "x", empty=True),
        lambda: encoder.conversation([{"role": "assistant", "content": ""}], empty=True),
    ):
        with pytest.raises(TextError) as caught:
            refused()
        assert caught.value.fault == TextFault.EMPTY


def test_lone_surrogates_are_found_wherever_a_template_writes_them(both):
    encoder, _ = both
    last = {"role": "assistant", "content": "x"}
    for turns in (
        [{"role": "user", "content": "\ud800"}, last],
        [{"role": "us\udfffer", "content": "x"}, last],
    ):
        with pytest.raises(TextError) as caught:
            encoder.conversation(turns, cut="left")
        assert caught.value.fault == TextFault.INVALID


DATED = (
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}"
    "Today: {{ date_string }}\n" + models.TEMPLATE.removeprefix("{{ bos_token }}")
)


def on_day(monkeypatch, day):
    class Today(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(day.year, day.month, day.day, 12, 30)

    monkeypatch.setattr(chat_template_utils, "datetime", Today)


def test_a_template_s_date_is_fixed(monkeypatch):
    made = models.tokenizer(template=DATED)
    dated = TextEncoder(made, 128, 320)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    found, naive = [], []
    for day in (date(2026, 1, 2), date(2026, 1, 3)):
        on_day(monkeypatch, day)
        found.append(dated.pair("Hi", "Hello.").ids)
        naive.append(tuple(made.apply_chat_template(turns)["input_ids"]))
    assert naive[0] != naive[1]  # or the days were not faked
    assert found[0] == found[1]
    on_day(monkeypatch, date(2024, 7, 26))
    assert list(found[0]) == made.apply_chat_template(turns)["input_ids"]
    assert dated.template.date == "2024-07-26"
    other = TextEncoder(made, 128, 320, template_date=date(2020, 2, 29))
    assert other.pair("Hi", "Hello.").ids != found[0]
    assert "29 Feb 2020" in made.decode(other.pair("Hi", "Hello.").ids)
    assert dated.pair("Hi", "Hello.").ids == found[0]  # they share compiled templates, not days


@pytest.mark.parametrize(
    "source",
    [
        "{{ strftime_now(format) }}",
        "\n\n  {% if true %}\n{{ strftime_now(format) }}{% endif %}\n",
        "  {%- set now = strftime_now -%}\n{{ now(format) }}\n\n",
        "{# a comment #}\n{% macro day() %}{{ strftime_now(format) }}{% endmacro %}{{ day() }}",
    ],
)
def test_a_fixed_date_changes_nothing_else_of_a_template(monkeypatch, source):
    """Every format of strftime, white space at the start and the end, names and macros."""
    day = date(2019, 12, 31)
    for format in ("%d %b %Y", "%B %d, %Y", "%A %j %U %y %-d %%", "%Y-%m-%d", "%x %c %H:%M"):
        template = f"{{% set format = '{format}' %}}" + source
        made = models.tokenizer(template=template)
        encoder = TextEncoder(made, 128, 320, template_date=day)
        assert encoder.template.date == "2019-12-31"
        turns = [{"role": "user", "content": "Hi"}]

        class Midnight(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(day.year, day.month, day.day)

        monkeypatch.setattr(chat_template_utils, "datetime", Midnight)
        assert encoder.template.render(turns) == made.apply_chat_template(turns, tokenize=False)


def test_a_date_is_of_the_fingerprint_only_where_a_template_writes_it(tmp_path, reward_model):
    plain = load_backbone(str(reward_model))
    other = load_backbone(str(reward_model), template_date=date(2020, 1, 1))
    assert plain.fingerprint == other.fingerprint
    assert other.text.template.date is None
    folder = str(models.save_reward_model(tmp_path / "dated", template=DATED))
    dated = load_backbone(folder)
    assert dated.text.template.date == "2024-07-26"
    assert load_backbone(folder).fingerprint == dated.fingerprint
    moved = load_backbone(folder, template_date=date(2020, 1, 1))
    assert moved.fingerprint != dated.fingerprint


def test_a_date_that_cannot_be_fixed_refuses_the_model():
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *_, **__):
            return f"today is {datetime.now()}"

    made = models.tokenizer(template=DATED)
    own = Own(tokenizer_object=made.backend_tokenizer, chat_template=DATED)
    with pytest.raises(ValueError, match="cannot be fixed"):
        TextEncoder(own, 128, 320)


def test_named_templates(tmp_path):
    two = {"rag": "rag {{ messages[0].content }}", "chat": models.TEMPLATE}
    made = models.tokenizer(template=two)
    without = TextEncoder(made, 128, 320)
    assert not without.has_template
    with pytest.raises(
        TextError, match=r"no default: it has chat, rag; .*--chat-template"
    ) as caught:
        without.pair("a", "b")
    assert caught.value.fault == TextFault.NO_TEMPLATE
    assert without.pair("", "b", raw=True).ids
    chosen = TextEncoder(made, 128, 320, chat_template="chat")
    assert chosen.pair("a", "b").ids == TextEncoder(models.tokenizer(), 128, 320).pair("a", "b").ids
    default = TextEncoder(models.tokenizer(template={**two, "default": "x"}), 128, 320)
    assert default.template.render([{"role": "user", "content": "a"}]) == "x"
    with pytest.raises(ValueError, match=r"named 'mine': it has chat, rag"):
        TextEncoder(made, 128, 320, chat_template="mine")
    with pytest.raises(ValueError, match="no named ones"):
        TextEncoder(models.tokenizer(), 128, 320, chat_template="default")

    folder = str(models.save_reward_model(tmp_path / "named", template=two))
    prints = {load_backbone(folder, chat_template=one).fingerprint for one in (None, *two)}
    assert len(prints) == 3
    with pytest.raises(ModelRefusedError, match="--chat-template"):
        load_backbone(folder, chat_template="mine")


def test_a_template_that_is_no_program_is_none():
    broken = TextEncoder(models.tokenizer(template="{% if %}"), 128, 320)
    assert not broken.has_template
    with pytest.raises(TextError, match="cannot be compiled") as caught:
        broken.pair("a", "b")
    assert caught.value.fault == TextFault.NO_TEMPLATE
