"""`r2m doctor` on servers that would start, and on every kind that would not."""

import json
import pathlib
import socket
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import create_engine, insert, text
from support.models import TEMPLATE, save_reward_model, tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from r2m.errors import Problem
from r2m_service import doctor as doctor_package
from r2m_service.doctor import host
from r2m_service.modeling import loading
from r2m_service.registry.migrate import VERSION_TABLE
from r2m_service.registry.sql import SqlRegistry
from r2m_service.registry.survey import survey
from r2m_service.registry.tables import runs, steps

PORTS = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


@pytest.fixture
def examine(r2m, reward_model, tmp_path, monkeypatch):
    """Runs the doctor on a good server but for what is given; its findings by check."""
    monkeypatch.setattr(host, "CLOCK_SECONDS", 0.0)  # seconds, over all these tests

    def run(*flags, model=reward_model, state=tmp_path / "state", ports=PORTS):
        result = r2m("doctor", "--model", model, "--state", state, *ports, *flags, "--json")
        answer = json.loads(result.stdout)
        found = {one["check"]: one for one in answer["findings"]}
        assert len(found) == len(answer["findings"])
        problems = [one for one in found.values() if one["level"] == "problem"]
        assert result.exit_code == (1 if problems else 0)
        assert answer["ok"] == (not problems)
        for one in found.values():
            assert bool(one["mend"]) == (one["level"] != "ok"), one
        return found

    return run


def problems(found):
    return {name: one["found"] for name, one in found.items() if one["level"] == "problem"}


def warnings(found):
    return {name: one["found"] for name, one in found.items() if one["level"] == "warning"}


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_good_server_is_fine_and_nothing_is_left_behind(r2m, reward_model, tmp_path):
    result = r2m("doctor", "--model", reward_model, "--state", tmp_path / "state", *PORTS)
    assert result.exit_code == 0, result.output
    *lines, last = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] == "problem"] == []
    checks = [line[9:24].strip() for line in lines]
    assert checks[0] == "settings"
    named = [name for name, _ in doctor_package.CHECKS]
    assert checks[1:] == [
        name
        for name in named
        if name not in {"extras", "journal", "runs", "heads", "ops port", "tls"}
    ]
    assert "nothing would stop r2m serve" in last
    assert list(tmp_path.iterdir()) == []


def test_without_the_model_it_is_not_loaded(examine, monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(loading, "load_backbone", fail)
    found = examine("--no-model")
    assert problems(found) == {}
    assert "--no-model" in found["weights"]["found"]
    assert "LlamaForSequenceClassification with its own head" in found["model"]["found"]
    assert "first pass" not in found
    # And the guard works: with the model it would have been called.
    assert "loaded" in problems(examine())["weights"]


def test_a_wrong_setting_is_a_finding(r2m):
    result = r2m("doctor", "--json")
    assert result.exit_code == 1
    (one,) = json.loads(result.stdout)["findings"]
    assert (one["check"], one["level"]) == ("settings", "problem")
    assert "--model" in one["found"]


# ---------------------------------------------------------------------- model and device


def test_a_missing_model(examine, tmp_path):
    found = examine(model=tmp_path / "nowhere")
    assert problems(found) == {"model": f"there is no folder {tmp_path / 'nowhere'}"}
    assert "weights" not in found
    (tmp_path / "empty").mkdir()
    assert "cannot load" in problems(examine(model=tmp_path / "empty"))["model"]


def test_a_quantised_model_without_its_library_is_the_models_fault(examine, tmp_path):
    folder = save_reward_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    found = problems(examine(model=folder))
    assert "cannot load" in found["weights"]
    assert "the check failed" not in found["weights"]  # those words are for bugs


def test_a_hub_id_that_cannot_be_had(examine):
    assert (
        "cannot load 'r2m/no-such-model'" in problems(examine(model="r2m/no-such-model"))["model"]
    )


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "causal"
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_a_causal_lm_without_a_head(examine, causal_lm, tmp_path):
    for flags in ((), ("--no-model",)):
        found = problems(examine(*flags, model=causal_lm))
        assert list(found) == ["model"]
        assert "give one with --head" in found["model"]
    missing = problems(examine("--head", tmp_path / "h", "--no-model", model=causal_lm))
    assert "no head file" in missing["model"]


def test_a_head_that_does_not_fit(examine, causal_lm, tmp_path):
    save_file({"head.weight": torch.zeros(1, 32)}, tmp_path / "good")
    save_file({"head.weight": torch.zeros(1, 31)}, tmp_path / "bad")
    assert problems(examine("--head", tmp_path / "good", model=causal_lm)) == {}
    found = problems(examine("--head", tmp_path / "bad", model=causal_lm))
    assert list(found) == ["weights"]
    assert "[1, 32]" in found["weights"]


def test_a_model_of_two_labels_and_one_cut_short(examine, tmp_path):
    save_reward_model(tmp_path / "two", num_labels=2)
    assert "2 labels" in problems(examine("--no-model", model=tmp_path / "two"))["model"]
    save_reward_model(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = problems(examine(model=tmp_path / "cut"))
    assert list(found) == ["model"]
    assert "no safetensors file" in found["model"]


def test_no_chat_template_is_a_warning(examine, tmp_path):
    save_reward_model(tmp_path / "m", template=None)
    found = examine(model=tmp_path / "m")
    assert problems(found) == {}
    assert list(warnings(found)) == ["chat template"]


def test_named_chat_templates_without_a_default_are_listed(examine, tmp_path):
    save_reward_model(tmp_path / "m", template={"rag": "x", "chat": "y"})
    found = examine(model=tmp_path / "m")
    assert problems(found) == {}
    told = warnings(found)["chat template"]
    assert "it has chat, rag" in told
    assert "--chat-template" in told
    found = examine("--chat-template", "rag", model=tmp_path / "m")
    assert "chat template" not in warnings(found)
    found = examine("--chat-template", "mine", model=tmp_path / "m")
    assert "it has chat, rag" in problems(found)["weights"]


def test_the_date_that_a_chat_template_writes_is_named(examine, tmp_path):
    template = "{{ strftime_now('%d %B') }}" + TEMPLATE
    save_reward_model(tmp_path / "m", template=template)
    for flags, day in (((), "2024-07-26"), (("--template-date", "2025-01-31"), "2025-01-31")):
        line = examine(*flags, model=tmp_path / "m")["chat template"]
        assert line["level"] == "ok"
        assert f"it writes {day} (--template-date)" in line["found"]


def test_a_maximum_length_beyond_the_models(examine):
    assert "128" in problems(examine("--max-length", 4096))["weights"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there(examine, device):
    found = examine("--device", device)
    assert list(problems(found)) == ["device"]
    assert "cpu" in found["device"]["mend"]
    assert "weights" not in found


def test_what_fits_the_device_badly_is_a_warning(examine):
    found = examine("--dtype", "float16", "--threads", 4096, "--no-model", "--device", "cpu")
    assert set(warnings(found)) == {"dtype", "threads"}


# ---------------------------------------------------------------------- registry


def test_a_file_in_place_of_the_state_folder(examine, tmp_path):
    (tmp_path / "file").write_text("")
    for state in (tmp_path / "file", tmp_path / "file" / "below"):
        found = problems(examine("--no-model", state=state))
        assert list(found) == ["state"]
        assert f"{tmp_path / 'file'}: Not a directory" in found["state"]


def test_a_file_in_place_of_the_blobs_folder(examine, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "blobs").write_text("")
    assert list(problems(examine("--no-model"))) == ["blobs"]


def test_a_journal_that_cannot_be_written(examine, tmp_path):
    (tmp_path / "file").write_text("")
    for journal in (tmp_path / "file", tmp_path / "file" / "below"):
        found = problems(examine("--no-model", "--journal", journal))
        assert list(found) == ["journal"]
        assert f"{tmp_path / 'file'}: Not a directory" in found["journal"]
    fine = examine("--no-model", "--journal", tmp_path / "new")
    assert fine["journal"]["found"] == f"{tmp_path / 'new'} can be made"
    assert not (tmp_path / "new").exists()


def test_blobs_elsewhere(examine, tmp_path):
    assert problems(examine("--no-model", "--blobs", "memory://heads")) == {}
    assert problems(examine("--no-model", "--blobs", f"file://{tmp_path}/b")) == {}
    found = problems(examine("--no-model", "--blobs", "nosuch://key:secret@bucket"))
    assert list(found) == ["blobs"]
    assert "secret" not in found["blobs"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def state(tmp_path):
    """A state folder as a server leaves it, without runs."""
    folder = tmp_path / "state"
    SqlRegistry(folder / "r2m.db").close()
    (folder / "blobs").mkdir()
    return folder


def change(state, *statements):
    engine = create_engine(f"sqlite:///{state / 'r2m.db'}")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)
    engine.dispose()


def run_row(name, fingerprint, *, archived=False):
    return insert(runs).values(
        name=name, key=name, fingerprint=fingerprint, policy="{}", feedback="policy", method="{}",
        current_branch="main", archived=archived, created_at=datetime.now(UTC),
    )  # fmt: skip


def step_row(step):
    return insert(steps).values(
        run="run-0", branch="main", step=step, content_hash="", answer="x" * 100, live_after=0,
        created_at=datetime.now(UTC),
    )  # fmt: skip


def head_row(run, number, *, made, weights=3, optimizer=None):
    """A head whose files were let go: these tests are about its row."""
    return text(
        "INSERT INTO heads (run, number, branch, step, t, omega, reference, accepted, verdict,"
        " reason, metrics, created_at, weights_key, weights_sha256, weights_size, optimizer_size,"
        " pruned_at) VALUES (:run, :number, 'main', 0, 0, 0.6, 0, 1, 'accepted', '', '{}', :made,"
        " 'k', 's', :weights, :optimizer, :made)"
    ).bindparams(run=run, number=number, made=made, weights=weights, optimizer=optimizer)


def test_a_state_in_use_is_fine_and_stays_as_it_is(examine, state):
    change(state, run_row("r", "f" * 64), head_row("r", 0, made="2026-01-01 00:00:00"))
    before = snapshot(state)
    found = examine("--no-model")
    assert problems(found) == {}
    assert "current" in found["database"]["found"]
    assert "1 runs, 1 heads" in found["runs"]["found"]
    assert snapshot(state) == before
    registry = SqlRegistry(state / "r2m.db")  # as of a running server
    assert problems(examine("--no-model")) == {}
    registry.close()


def test_runs_of_another_model_are_a_warning(examine, state, reward_model):
    mine = loading.load_backbone(str(reward_model)).fingerprint
    change(state, run_row("mine", mine), run_row("archived", "e" * 64, archived=True))
    assert warnings(examine()) == {}
    change(state, run_row("other", "f" * 64))
    found = examine()
    assert problems(found) == {}
    assert list(warnings(found)) == ["runs"]
    assert "3 runs" in found["runs"]["found"]
    assert "1 of another model" in found["runs"]["found"]
    assert "(other)" in found["runs"]["found"]


def test_a_newer_database(examine, state):
    change(state, text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    before = snapshot(state)
    found = problems(examine("--no-model"))
    assert list(found) == ["database"]
    assert "newer version" in found["database"]
    assert "9999" in found["database"]
    assert snapshot(state) == before


def test_a_survey_makes_no_file(tmp_path):
    with pytest.raises(Problem, match="cannot be opened"):
        survey(tmp_path / "r2m.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_tables_is_not_given_any(examine, state):
    (state / "r2m.db").unlink()
    (state / "r2m.db").touch()
    assert "no tables yet" in examine("--no-model")["database"]["found"]
    assert (state / "r2m.db").read_bytes() == b""


@pytest.mark.parametrize("where", ["header", "middle", "cut", "last page"])
def test_a_damaged_database(examine, state, where):
    file = state / "r2m.db"
    change(state, *(run_row(f"run-{n}", "f" * 64) for n in range(200)))
    # Rows that nothing but a check of the whole file reads.
    change(state, *(step_row(n) for n in range(200)))
    data = bytearray(file.read_bytes())
    if where == "header":
        data[:64] = b"x" * 64
    elif where == "middle":
        data[4096:] = b"\xa5" * len(data[4096:])
    elif where == "last page":
        data[-4096:] = b"\xa5" * 4096
    else:
        del data[len(data) // 2 :]
    file.write_bytes(data)
    found = examine("--no-model")
    assert list(problems(found)) == ["database"]
    assert "damaged" in problems(found)["database"]
    assert str(file) in found["database"]["mend"]


def test_a_database_that_another_process_holds(examine, state, monkeypatch):
    monkeypatch.setattr("r2m_service.registry.survey._LOCK_SECONDS", 0.05)
    engine = create_engine(f"sqlite:///{state / 'r2m.db'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        assert "locked" in problems(examine("--no-model"))["database"]
    engine.dispose()
    assert problems(examine("--no-model")) == {}


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/db"])
def test_a_database_of_another_kind(examine, url):
    found = problems(examine("--no-model", "--registry", url))
    assert list(found) == ["database"]
    assert "secret" not in found["database"]


def test_a_disk_without_room(examine, state, monkeypatch):
    big = 1 << 60
    change(
        state,
        run_row("r", "f" * 64),
        head_row("r", 0, made="2026-01-01 00:00:00", weights=big, optimizer=2 * big),
    )
    found = problems(examine("--no-model"))
    assert list(found) == ["disk"]
    assert "the largest head so far takes 3221225472.0 GiB" in found["disk"]
    change(state, text("UPDATE heads SET weights_size = 100, optimizer_size = 200"))
    for free, level in ((299, "problem"), (300, "warning"), (2999, "warning"), (3000, "ok")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda _folder, usage=usage: usage)
        assert examine("--no-model")["disk"]["level"] == level


def test_a_head_from_the_future(examine, state):
    change(state, run_row("r", "f" * 64), head_row("r", 0, made="2098-01-01 00:00:00"))
    assert "went back" in warnings(examine("--no-model"))["clock"]


# ---------------------------------------------------------------------- ports


@pytest.mark.parametrize("flag", ["--http", "--grpc"])
def test_a_port_in_use(examine, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = examine("--no-model", flag, address)
        name = f"{flag[2:]} port"
        assert list(problems(found)) == [name]
        assert address in found[name]["found"]
        assert flag in found[name]["mend"]
    assert problems(examine("--no-model", flag, address)) == {}


def test_ports_that_cannot_be(examine):
    same = problems(examine("--no-model", ports=("--http", "127.0.0.1:9", "--grpc", "127.0.0.1:9")))
    assert "HTTP's address too" in same["grpc port"]
    # 192.0.2.0/24 is for documentation: no machine has it.
    nowhere = examine("--no-model", "--insecure", "--http", "192.0.2.1:0")
    assert list(problems(nowhere)) == ["http port"]


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_an_open_address_is_a_warning(examine, address):
    if address.startswith("[") and not ipv6():
        pytest.skip("this machine has no IPv6")
    found = examine("--no-model", "--http", address)
    assert list(problems(found)) == ["keys"]
    found = examine("--no-model", "--insecure", "--http", address)
    assert problems(found) == {}
    assert list(warnings(found)) == ["http port"]
    assert "there are no keys" in found["http port"]["found"]


def test_ipv6_loopback_is_fine(examine):
    if not ipv6():
        pytest.skip("this machine has no IPv6")
    found = examine("--no-model", "--http", "[::1]:0")
    assert found["http port"]["level"] == "ok"


def ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------- the command


def test_a_check_that_breaks_is_a_line(r2m, reward_model, tmp_path, monkeypatch):
    def broken(_patient):
        raise RuntimeError("libcuda is\nnot there")

    monkeypatch.setattr(doctor_package, "CHECKS", (("device", broken),))
    result = r2m("doctor", "--model", reward_model)
    assert result.exit_code == 1
    line = result.stdout.splitlines()[1]
    assert line.startswith("problem  device")
    assert "RuntimeError: libcuda is" in line
    assert "1 problem, no warnings: r2m serve would fail" in result.stdout


def test_as_a_process(r2m_process, reward_model, tmp_path):
    (tmp_path / "state").write_text("")
    done = r2m_process("doctor", "--model", reward_model, "--state", tmp_path / "state", *PORTS)
    assert done.returncode == 1
    assert done.stderr == ""  # no progress bar and no progress line without a terminal
    assert "\nok       weights " in done.stdout
    assert "\nproblem  state " in done.stdout
    assert "1 problem, " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_the_server_refuses_a_device_by_the_same_sentence(examine, reward_model, device):
    with pytest.raises(loading.ModelRefusedError) as caught:  # a StartError of `r2m serve`
        loading.load_backbone(str(reward_model), device=device)
    assert problems(examine("--no-model", "--device", device)) == {"device": str(caught.value)}


def test_modules_stay_small():
    for path in pathlib.Path(doctor_package.__file__).parent.glob("*.py"):
        assert len(path.read_text().splitlines()) < 300, path
