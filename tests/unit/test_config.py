"""The config: defaults < YAML < arguments, `--help`, and one line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import cobo_dist
from cobo_dist.cli.train import main
from cobo_dist.config import (
    VARIANTS,
    Config,
    all_keys,
    config_of,
    describe_keys,
    groups,
    load_config,
    owners_of,
)
from cobo_dist.errors import ConfigError


def refusal(*arguments: str, file: Path | None = None) -> str:
    """Return the one line with which these arguments are refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(str(file) if file else None, arguments)
    message = str(caught.value)
    assert message.splitlines() == [message], "one line"
    return message


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a dumped config into {key.path: value}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "cobo.yaml"
    path.write_text(
        "run: {rounds: 7, seed: 3}\n"
        "algorithm:\n  name: cobo\n  rho: 0.5\n  sampling: {name: mixed, switch_fraction: 0.1}\n"
        "optimizer: {lr: 1e-3}\n"
    )
    return path


# -- defaults and precedence ---------------------------------------------------------------------------


def test_the_defaults_are_the_quickstart() -> None:
    config = load_config(None, [])
    assert config == Config()
    assert (config.task.name, config.task.clusters, config.task.clients_per_cluster) == (
        "digits", 4, 2,
    )  # fmt: skip
    assert config.algorithm.name == "cobo"
    assert (config.algorithm.domain, config.algorithm.start) == ("box", "ones")
    assert str(config.run_dir) == "runs/digits-cobo-s0"


def test_the_file_wins_over_defaults_and_arguments_win_over_the_file(yaml_file: Path) -> None:
    config = load_config(str(yaml_file), ["run.rounds=9", "algorithm.sampling.rate=2"])
    assert config.run.rounds == 9, "argument over file"
    assert config.run.seed == 3, "file over default"
    assert config.run.eval_every == Config().run.eval_every, "default where nothing is set"
    assert config.algorithm.rho == 0.5
    assert config.optimizer.lr == 0.001, "1e-3 in a file is a number"
    sampling = config.algorithm.sampling
    assert (sampling.name, sampling.switch_fraction, sampling.rate) == ("mixed", 0.1, 2.0)


def test_the_last_of_two_equal_arguments_wins() -> None:
    assert load_config(None, ["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E2", 100.0), ("-0", 0.0), (".5", 0.5), ("2", 2.0), ("+2.5e+1", 25.0)],
)
def test_numbers_are_read_as_users_write_them(text: str, value: float) -> None:
    assert load_config(None, [f"optimizer.lr={text}"]).optimizer.lr == value


def test_lists_are_read() -> None:
    config = load_config(None, ["model.hidden=[32, 16]", "run.eval_splits=[validation, test]"])
    assert config.model.hidden == (32, 16)
    assert config.run.eval_splits == ("validation", "test")


@pytest.mark.parametrize("name", ["runs/a b", "2024", "0123", "1e5", "12e4567", "2024-01-02", "on"])
def test_a_run_folder_is_named_as_it_is_written(name: str) -> None:
    """Text keys take the text itself, whatever number, date or yes/no it looks like."""
    assert load_config(None, [f"run.dir={name}"]).run.dir == name


@pytest.mark.parametrize("key", ["run.dir", "data.root"])
@pytest.mark.parametrize("text", ['"a\\0b"', '"a\\ud800"'])
def test_text_that_no_file_name_can_have_is_refused(key: str, text: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{key}=.* is refused: it holds a character that no file name"
    ):
        load_config(None, [f"{key}={text}"])


def test_numbers_beyond_what_tensors_count_are_refused() -> None:
    """2^63 examples at once ended in a ValueError of torch."""
    with pytest.raises(ConfigError, match=r"data\.eval_batch_size=9223372036854775808 is refused"):
        load_config(None, [f"data.eval_batch_size={2**63}"])


def test_the_config_is_frozen() -> None:
    config = load_config(None, [])
    for section, key in ((config.run, "rounds"), (config.algorithm, "rho"), (config, "run")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 5)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(str(tmp_path / "empty.yaml"), []) == Config()


# -- help ----------------------------------------------------------------------------------------------


def test_help_lists_every_key_with_type_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help", "all"]) == 0
    shown = capsys.readouterr().out
    lines = describe_keys().splitlines()
    assert describe_keys() in shown
    for section, variants in VARIANTS.items():
        for name in variants:
            dumped = leaves(load_config(None, [f"{section}.name={name}"]).model_dump(by_alias=True))
            assert any(line.startswith(f"{section}.name={name}: ") for line in lines)
            for key, value in dumped.items():
                if key in [f"{other}.name" for other in VARIANTS]:
                    continue  # a heading of its own
                at = [n for n, line in enumerate(lines) if line.startswith(f"  {key}  (")]
                assert at, f"{key} is missing"
                words = {True: "true", False: "false", "": "empty", None: "null"}
                default = words.get(value, str(value))
                if isinstance(value, tuple):
                    default = f"[{', '.join(map(str, value))}]"
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    default = str(value)
                assert any(lines[n].endswith(f", default {default})") for n in at), lines[at[0]]
                for n in at:
                    kind = lines[n].split("(")[1].split(",")[0]
                    assert kind, lines[n]
                    assert "typing" not in kind, lines[n]
                    assert "<class" not in kind, lines[n]
                    meaning = lines[n + 1].strip()
                    assert len(meaning) >= 8, f"the meaning of {key} is {meaning!r}"
                    assert meaning != "None"


def test_every_key_of_help_exists() -> None:
    """The other direction: `all_keys` lists no key that does not exist."""
    real = set()
    for group, variant in groups().items():
        section, _, rest = group.partition(".")
        above = [f"{section}.name={one}" for one in owners_of(section, rest)] if rest else []
        for name in variant.names:
            config = load_config(None, [*above[:1], f"{group}.name={name}"])
            real |= set(leaves(config.model_dump(by_alias=True)))
    assert {key for key, _ in all_keys()} == real


def test_arguments_replace_a_variant_inside_a_section(tmp_path: Path) -> None:
    """What only the old name has is dropped, in a section and in a group of it."""
    (tmp_path / "f.yaml").write_text(
        "task: {name: classification, partition: {name: dirichlet, alpha: 1.0, clients: 5}}\n"
    )
    config = load_config(str(tmp_path / "f.yaml"), ["task.partition.name=shards"])
    assert config.flat()["task.partition.name"] == "shards"
    assert config.flat()["task.partition.clients"] == 5
    assert "task.partition.alpha" not in config.flat()
    assert load_config(str(tmp_path / "f.yaml"), ["task.name=digits"]).task.name == "digits"
    again = config_of(config, {"task.change.name": "labels"})
    assert again.flat()["task.partition.name"] == "shards"


# -- round trip ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["optimizer.lr=1e-05", "algorithm.gamma=1e-20", "comm.timeout=1e6"],
        ["algorithm.name=oracle", "algorithm.buffers=averaged", "model.hidden=[]"],
        ["optimizer.name=adamw", "optimizer.betas=[0, 0.5]", "algorithm.domain=simplex"],
        ["task.name=quadratic", "task.file=problem.npz", "run.dtype=float64", "task.noise=1e-7"],
        ["run.eval_splits=[validation, test]", "comm.deterministic=true", "run.dir='a: b #c'"],
        ['run.dir="1e5"'],
        ['run.dir="2024-01-02"'],
        ['run.dir="true"', 'task.name="digits"'],
    ],
    ids=lambda arguments: " ".join(arguments) or "defaults",
)
def test_to_yaml_and_back(tmp_path: Path, arguments: list[str]) -> None:
    config = load_config(None, arguments)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(str(tmp_path / "config.yaml"), []) == config


# -- variants ------------------------------------------------------------------------------------------


def test_another_algorithm_over_a_file_written_for_cobo(yaml_file: Path) -> None:
    config = load_config(str(yaml_file), ["algorithm.name=local"])
    assert config.algorithm.model_dump() == {"name": "local"}
    assert (config.run.rounds, config.optimizer.lr) == (7, 0.001), "the rest of the file counts"


def test_another_task_over_a_file_written_for_digits(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("task: {clusters: 3}\n")
    config = load_config(str(tmp_path / "digits.yaml"), ["task.name=quadratic", "task.file=p.npz"])
    assert config.task.model_dump() == {
        "name": "quadratic", "file": "p.npz", "noise": 0.0, "drift": (),
    }  # fmt: skip


def test_a_key_of_cobo_next_to_local_on_the_command_line_is_refused(yaml_file: Path) -> None:
    for file in (None, yaml_file):
        message = refusal("algorithm.name=local", "algorithm.rho=0.1", file=file)
        assert "algorithm.rho is no key of algorithm.name=local" in message
        assert "belongs to cobo" in message
        assert "algorithm.name=cobo" in message


def test_a_nested_key_of_cobo_next_to_local_names_its_owner() -> None:
    message = refusal("algorithm.name=local", "algorithm.sampling.rate=2")
    assert "algorithm.sampling" in message
    assert "cobo" in message


def test_a_typo_in_the_file_is_not_dropped_with_the_other_algorithm(tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text("algorithm: {name: cobo, rh0: 0.5}\n")
    message = refusal("algorithm.name=local", file=tmp_path / "typo.yaml")
    assert "algorithm.rh0 is not a known key" in message


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("run.round=5", "run.rounds"),
        ("run.sead=5", "run.seed"),
        ("algorithm.rh0=0.1", "algorithm.rho"),
        ("algorithm.gama=0.1", "algorithm.gamma"),
        ("optimiser.lr=0.1", "optimizer.lr"),
        ("optim.lr=0.1", "optimizer.lr"),
        ("optimiser.momentum=0.5", "optimizer.momentum"),
        ("comm.timeot=5", "comm.timeout"),
        ("algorithm.sampling.rat=1", "algorithm.sampling.rate"),
        ("algorithm.samplin.rate=1", "algorithm.sampling.rate"),
        ("algorithm.sampling.switch_fration=1", "algorithm.sampling.switch_fraction"),
        ("sampling.rate=1", "algorithm.sampling.rate"),
        ("rounds=5", "run.rounds"),
        ("task.cluster=5", "task.clusters"),
        ("data.batchsize=5", "data.batch_size"),
        ("model.hiden=[5]", "model.hidden"),
        ("log.flush=5", "log.flush_every"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(argument: str, nearest: str) -> None:
    message = refusal(argument)
    culprit, _, hint = message.partition(" is not a known key; ")
    assert argument.startswith(culprit), "the key, or the part of it that is wrong"
    assert hint == f"did you mean {nearest}?"


def test_the_nearest_key_of_a_file_is_named_as_well(tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text("comm:\n  timeot: 5\n")
    assert refusal(file=tmp_path / "typo.yaml").endswith("did you mean comm.timeout?")


def test_a_key_like_no_other_points_to_help() -> None:
    assert refusal("zzz=5") == "zzz is not a known key; --help all lists the keys"


def test_several_mistakes_are_counted() -> None:
    assert refusal("run.rounds=-1", "run.seed=-1", "run.rounz=2").endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("algorithm.name=cob", ("algorithm.name='cob'", "did you mean cobo?")),
        (
            "algorithm.name=xyz",
            (
                "algorithm.name='xyz'",
                "local, fedavg, finetuned_fedavg, ditto, ifca, federated_clustering, "
                "validation_based, cobo, oracle",
            ),
        ),
        ("task.name=digit", ("task.name='digit'", "did you mean digits?")),
        ("model.name=ml", ("model.name='ml'", "mlp")),
        ("optimizer.name=sdg", ("optimizer.name='sdg'", "did you mean sgd?")),
        ("comm.backend=glo", ("comm.backend='glo'", "did you mean gloo?")),
        ("algorithm.sampling.name=al", ("algorithm.sampling.name='al'", "did you mean all?")),
        ("algorithm.domain=ball", ("algorithm.domain='ball'", "box, simplex")),
        ("optimizer.schedule=one_cycel", ("did you mean one_cycle?",)),
        ("run.eval_splits=[tst]", ("run.eval_splits", "'tst'", "did you mean test?")),
        ("run.dtype=float16", ("run.dtype='float16'", "float32, float64")),
        ("algorithm.name=", ("algorithm.name=''",)),
        ("algorithm.name=[cobo]", ("algorithm.name=['cobo']",)),
    ],
)
def test_an_unknown_name_is_refused(argument: str, words: tuple[str, ...]) -> None:
    message = refusal(argument)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("argument", "culprit"),
    [
        ("run.rounds=ten", "run.rounds='ten'"),
        ("run.rounds=1.5", "run.rounds=1.5"),
        ("run.rounds=true", "run.rounds=True"),
        ("run.rounds=null", "run.rounds=None"),
        ("run.rounds=[5]", "run.rounds=[5]"),
        ("run.rounds=", "run.rounds=''"),
        ("run.rounds=-1", "run.rounds=-1"),
        ("run.seed=-1", "run.seed=-1"),
        ("run.overwrite=1", "run.overwrite=1"),
        ("run.overwrite=maybe", "run.overwrite='maybe'"),
        ("optimizer.lr=true", "optimizer.lr=True"),
        ("optimizer.lr='0.1'", "optimizer.lr='0.1'"),
        ("optimizer.lr=-0.1", "optimizer.lr=-0.1"),
        ("optimizer.lr=.nan", "optimizer.lr=nan"),
        ("optimizer.lr=.inf", "optimizer.lr=inf"),
        ("optimizer.lr=-.inf", "optimizer.lr=-inf"),
        ("optimizer.lr=1e400", "optimizer.lr=inf"),
        ("optimizer.momentum=1", "optimizer.momentum=1"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1=1"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9"),
        ("optimizer.eps=0", "optimizer.eps=0"),
        ("optimizer.warmup=1.1", "optimizer.warmup=1.1"),
        ("algorithm.rho=.nan", "algorithm.rho=nan"),
        ("algorithm.rho=-1", "algorithm.rho=-1"),
        ("algorithm.gamma=-1", "algorithm.gamma=-1"),
        ("algorithm.sampling.rate=-1", "algorithm.sampling.rate=-1"),
        ("algorithm.sampling.switch_fraction=1.1", "algorithm.sampling.switch_fraction=1.1"),
        ("comm.timeout=0", "comm.timeout=0"),
        ("data.batch_size=0", "data.batch_size=0"),
        ("task.clusters=0", "task.clusters=0"),
        ("task.validation_fraction=1", "task.validation_fraction=1"),
        ("log.interval=0", "log.interval=0"),
        ("model.hidden=[64, x]", "model.hidden.1='x'"),
        ("model.hidden=[true]", "model.hidden.0=True"),
        ("model.hidden=64", "model.hidden=64"),
        ("model.hidden=[-1]", "-1"),
        ("model.hidden=[64, 0]", "0"),
        ("algorithm.sampling=2", "algorithm.sampling=2"),
        ("run=5", "run=5"),
        ("algorithm=5", "algorithm=5"),
        ("run.threads=100000000000000000000", "run.threads=100000000000000000000"),
        ("task=[digits]", "task=['digits']"),
        (
            "task={name: classification, partition: {name: disjoint_classes, cluster_sizes: []}}",
            "it must not be empty, for example task.partition.cluster_sizes=[2, 2, 2, 2]",
        ),
        (
            "model={name: torchvision, options: {foo: 1}}",
            "list: further arguments of the network, as [img_size",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_key_and_value(argument: str, culprit: str) -> None:
    message = refusal(argument)
    assert culprit in message
    assert argument.partition("=")[0] in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("comm.deterministic=true", "run.engine=vectorised"),
         ("comm.deterministic=true", "run.engine=vectorised", "auto")),
        (("comm.deterministic=true", "run.threads=2"),
         ("comm.deterministic=true", "run.threads=2", "0")),
        (("algorithm.domain=simplex", "algorithm.start=zeros"),
         ("algorithm.start=zeros", "algorithm.domain=simplex", "use algorithm.start=ones")),
        (("algorithm.own_weight=included",),
         ("algorithm.own_weight=included", "algorithm.domain=box", "algorithm.domain=simplex")),
        (("optimizer.betas=[0.8, 0.9]",),
         ("optimizer.betas", "optimizer.name=sgd", "set optimizer.name=adamw")),
        (("optimizer.name=adamw", "optimizer.momentum=0.9"),
         ("optimizer.momentum", "optimizer.name=adamw", "optimizer.name=sgd or ema_momentum")),
        (("optimizer.warmup=0.1",),
         ("optimizer.warmup", "optimizer.schedule=constant", "optimizer.schedule=one_cycle")),
        (("optimizer.step_every=5", "optimizer.schedule=cosine"),
         ("optimizer.step_every", "optimizer.schedule=cosine", "set optimizer.schedule=step")),
        (("task.name=quadratic", "task.file=p.npz", "run.eval_splits=[validation, test]"),
         ("run.eval_splits", "validation", "quadratic")),
    ],
)  # fmt: skip
def test_rules_across_sections(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = refusal(*arguments)
    for word in words:
        assert word in message


def test_allowed_by_the_rules_across_sections() -> None:
    config = load_config(
        None, ["comm.deterministic=true", "run.engine=one_by_one", "run.threads=1"]
    )
    assert config.comm.deterministic


@pytest.mark.parametrize("argument", ["rounds", "", "=5", "--rounds=5", "-x", "run.rounds 5"])
def test_stray_arguments_are_refused_with_an_example(argument: str) -> None:
    message = refusal(argument)
    assert repr(argument) in message
    assert "key.path=value" in message


def test_a_key_below_a_value_is_refused() -> None:
    assert "run already has a value" in refusal("run=5", "run.rounds=5")


@pytest.mark.parametrize("key", ["a\nb", "run.a\rb", "run.a\u2028b", "algorithm.a\nb"])
def test_line_breaks_in_a_key_do_not_break_the_line(key: str) -> None:
    assert "not a known key" in refusal(f"{key}=1")


def test_a_list_for_a_name_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cobo.yaml").write_text("algorithm: {rho: 0.1}\n")
    message = refusal("algorithm.name=[local]", file=tmp_path / "cobo.yaml")
    assert "algorithm.name=['local']" in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- a\n- b\n", "list"),
        ("just words\n", "str"),
        ("5\n", "int"),
        ("run: [\n", "not valid YAML"),
        ("run:\n\tseed: 1\n", "not valid YAML"),
        ("run: !!python/object:os.system {}\n", "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("run: {seed: 1}\n---\nrun: {seed: 2}\n", "not valid YAML"),
        ("1: 2\n", "1"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert word in refusal(file=tmp_path / "bad.yaml")


# -- random input --------------------------------------------------------------------------------------

KEYS = sorted({key for key, _ in all_keys()} | {"task.name", "algorithm.name"})
names = st.sampled_from(KEYS) | st.sampled_from(["run", "algorithm", "algorithm.sampling", "x"])
junk = st.text(max_size=8)
values = st.one_of(
    junk,
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["cobo", "local", "oracle", "quadratic", "digits", "true", "null", "[]", "{}", "[1, 2]",
         "{a: 1}", "&a [*a]", "0x", "0b_", "1:99", "2024-99-99", "=", "!!int x", "<<: 1", "9" * 400]
    ),
)  # fmt: skip
arguments_ = st.lists(
    st.one_of(
        st.tuples(names, values).map("=".join),
        st.tuples(names, junk, values).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"),
        junk,
    ),
    max_size=4,
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | junk | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([part for key in KEYS for part in key.split(".")])
            | junk
            | st.integers(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
sections = st.dictionaries(st.sampled_from(list(Config.model_fields)), trees, max_size=3)
texts = st.one_of(junk, (trees | sections).map(lambda tree: yaml.safe_dump(tree)))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=texts, arguments=arguments_)
@example(text="algorithm: {rho: 1}", arguments=["algorithm.name={}"])
@example(text="run: &a {b: *a}", arguments=["run.b=1"])
@example(text="", arguments=["optimizer.lr=" + "9" * 400])
def test_anything_gives_a_config_or_a_refusal_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, arguments: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        config = load_config(str(path), arguments)
    except ConfigError as error:
        message = str(error)
        assert message
        assert message.splitlines() == [message]
    else:
        assert isinstance(config, Config)
        path.write_text(config.to_yaml())
        assert load_config(str(path), []) == config, "what is accepted can be repeated"


def test_weight_decay_has_a_default_of_each_optimizer(tmp_path: Path) -> None:
    """The resolved config of an earlier version says 1e-3 for SGD too, where it meant nothing."""
    assert load_config(None, []).optimizer.weight_decay == 0.0
    assert load_config(None, ["optimizer.name=adamw"]).optimizer.weight_decay == 1e-3
    assert load_config(None, ["optimizer.weight_decay=0.1"]).optimizer.weight_decay == 0.1
    earlier = Path(__file__).parents[1] / "data" / "run_v1" / "whole" / "config.yaml"
    assert "weight_decay: 0.001" in earlier.read_text()
    assert load_config(str(earlier), []).optimizer.weight_decay == 0.0
    resolved = tmp_path / "config.yaml"
    resolved.write_text(load_config(None, ["optimizer.weight_decay=0.001"]).to_yaml())
    assert load_config(str(resolved), []).optimizer.weight_decay == 0.001


def test_class_variables_name_their_type() -> None:
    """Pydantic cannot read a plain `ClassVar` on Python 3.10, whose `typing` refuses it in an annotation."""
    package = Path(cobo_dist.__file__).parent
    plain = re.compile(r": ClassVar( =|$)", re.MULTILINE)
    assert [path for path in package.rglob("*.py") if plain.search(path.read_text())] == []
