"""Texts as users have them: long documents, byte order marks, hidden files, names of special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.cli.train import main as train
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.tasks.language.config import LanguageConfig
from cobo_dist.tasks.language.texts import ClientText, read_texts
from cobo_dist.tasks.language.tokens import ByteTokenizer, LibraryTokenizer, Stream, stream_of

LINE = "a line of a text that has thirty\n"


def streamed(text: str, limit: int, cache: Path) -> Stream:
    return stream_of(ClientText("x", text, False, "x.txt"), ByteTokenizer(), limit, cache)


def texts_in(folder: Path, *settings: str) -> list[ClientText]:
    config = load_config(
        None, ["task.name=language", "model.name=tiny-gpt2", f"data.text_dir={folder}", *settings]
    )
    assert isinstance(config.task, LanguageConfig)
    return read_texts(config.task, config.data)


# -- long documents ----------------------------------------------------------------------------------


def test_a_long_document_does_not_end_the_text(tmp_path: Path) -> None:
    text = 48 * LINE + 30_000 * "x" + "\n" + 2000 * LINE
    for _ in range(2):  # the second time from the cache
        stream = streamed(text, 20_000, tmp_path)
        assert 19_800 <= len(stream.tokens) <= 20_000
        assert stream.skipped == 1
        assert set(bytes(stream.tokens.tolist()).decode().splitlines()) == {LINE.strip()}
        assert stream.ends_d2[-1].tolist() == [len(stream.tokens)] * 2


def test_after_many_long_documents_the_rest_of_a_text_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of gigabytes is not tokenized to its end for a document that may never fit."""
    encoded = []
    encode = ByteTokenizer.encode

    def counted(self: ByteTokenizer, texts: Sequence[str]) -> list[Sequence[int]]:
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(ByteTokenizer, "encode", counted)
    long = 7000 * "y" + "\n"
    few = streamed(100 * LINE + 1000 * long + LINE, 10_000, tmp_path)
    assert len(few.tokens) == 101 * len(LINE)
    assert few.notice == "1,000 documents did not fit into task.tokens and were skipped"
    encoded.clear()
    for _ in range(2):  # the second time from the cache
        many = streamed(100 * LINE + 3000 * long + LINE, 10_000, tmp_path)
        assert len(many.tokens) == 100 * len(LINE)
        assert many.notice.endswith("were skipped, and the rest of the text is left out")
        assert len(encoded) < 1500


def test_a_text_that_fits_or_is_nearly_full_is_as_before(tmp_path: Path) -> None:
    whole = streamed(100 * LINE, 10_000, tmp_path)
    assert (len(whole.tokens), whole.skipped) == (100 * len(LINE), 0)
    full = streamed(1000 * LINE, 3310, tmp_path)
    assert (len(full.tokens), full.skipped) == (100 * len(LINE), 0)
    assert " " not in full.digest, (
        "the digest of earlier versions, so that their runs can be resumed"
    )


def test_tokens_of_an_earlier_version_are_not_read_from_the_cache(tmp_path: Path) -> None:
    streamed(10 * LINE, 10_000, tmp_path)
    (ends,) = tmp_path.glob("*.ends.npy")
    np.save(ends, np.load(ends)[1:, :2])
    assert len(streamed(10 * LINE, 10_000, tmp_path).ends_d2) == 10


def settings_of(folder: Path) -> list[str]:
    return [
        "task.name=language", "model.name=tiny-gpt2", "model.width=8", "task.context=16",
        "task.languages=[]", "data.batch_size=2", f"data.text_dir={folder / 'texts'}",
        f"data.root={folder}",
    ]  # fmt: skip


def test_skipped_documents_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    lines = "".join(f"{number} {LINE}" for number in range(40))
    for name in ("ca", "de"):
        text = lines + ("y" * 900 + "\n" if name == "ca" else "")
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    settings = [*settings_of(tmp_path), "task.tokens=2000"]
    assert prepare(settings) == 0
    said = capsys.readouterr().out
    assert "; 1 document did not fit into task.tokens and was skipped" in said
    run = [f"run.dir={tmp_path / 'run'}", "run.rounds=1", "log.figures=false"]
    assert train([*settings, *run]) == 0
    assert "ca.txt: 1 document did not fit" in (said := capsys.readouterr().out)
    assert "de.txt" not in said


def test_a_text_of_long_documents_only_is_refused_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    text = "\n".join("z" * 700 for _ in range(40))
    (tmp_path / "texts" / "ca.txt").write_text(text)
    assert prepare([*settings_of(tmp_path), "task.tokens=600"]) == 2
    assert "; 40 documents did not fit into task.tokens and were skipped: raise" in (
        said := capsys.readouterr().err
    )
    assert "raise task.tokens" in said
    assert prepare([*settings_of(tmp_path), "task.tokens=60000"]) == 0


# -- files -------------------------------------------------------------------------------------------


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "ca.txt").write_bytes("\ufeffone\n".encode() + "\ufefftwo\n".encode())
    (text,) = texts_in(tmp_path, "task.languages=[ca]")
    assert list(text.documents()) == ["one\n", "two\n"]


def test_hidden_files_are_no_clients_and_capitals_are(tmp_path: Path) -> None:
    for name in ("ca.txt", "DE.TXT", "es.Txt", ".hidden.txt", "._ca.txt", "notes.md"):
        (tmp_path / name).write_text("some text\n")
    (tmp_path / "folder.txt").mkdir()
    assert [text.name for text in texts_in(tmp_path, "task.languages=[]")] == ["DE", "ca", "es"]
    assert [text.name for text in texts_in(tmp_path, "task.languages=[es,DE]")] == ["es", "DE"]
    (tmp_path / "ca.TXT").write_text("other text\n")
    with pytest.raises(ConfigError, match=r"both ca\.TXT and ca\.txt.*rename"):
        texts_in(tmp_path, "task.languages=[]")


# -- special tokens ----------------------------------------------------------------------------------


def test_names_of_special_tokens_are_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra lm")
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra lm")
    rules = tokenizers.Tokenizer(tokenizers.models.BPE())
    rules.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    rules.train_from_iterator(["plain text for the tokenizer"], trainer)
    library = transformers.PreTrainedTokenizerFast(tokenizer_object=rules, eos_token=special[0])
    tokenizer = LibraryTokenizer(library)
    control = {rules.token_to_id(name) for name in special}
    texts = ["plain text", "it ends <|endoftext|> here", "<|im_start|><|im_end|>", ""]
    encoded = tokenizer.encode(texts)
    assert not control & {token for tokens in encoded for token in tokens}
    assert [rules.decode(list(tokens), skip_special_tokens=False) for tokens in encoded] == texts
    assert encoded[0] == library("plain text", add_special_tokens=False)["input_ids"]
    assert [tokenizer.has_special(text) for text in texts] == [False, True, True, False]
