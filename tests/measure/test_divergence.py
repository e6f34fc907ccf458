"""KL divergence: what ``llama-perplexity`` printed for the same model, and plain numpy."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from places import NOT_HERE
from safetensors.numpy import load_file, save_file

import edgedb
from edgedb import EdgeDBError
from edgedb.convert.export import export
from edgedb.convert.sources import open_source
from edgedb.convert.storage import Options
from edgedb.measure.base_logits import encode, open_base, write_header
from edgedb.measure.divergence import divergence, write_base

TEXT = (
    "Once upon a time there was a little girl named Lily. She had a red ball and a small dog. "
    "One day they went to the park to play in the sun. The dog saw a big bird and ran to it. "
    '"Come back!" said Lily. The bird was not happy. It flew up to a tall tree and looked down. '
    "Lily was sad and wanted to say sorry. She put some bread under the tree and sat down. "
)

# llama-perplexity -c 32 --kl-divergence of ggml 0.25.3 on TEXT four times over: stories260K as
# llama-quantize --pure makes it in Q4_0, read back as F32, against the checkpoint in F32. Means
# agree to three digits; a single token's KL moves with how either engine rounds its cache.
PRINTED = {
    "perplexity": (4.914867, 1e-3),
    "base_perplexity": (4.249204, 1e-3),
    "kl": (0.106738, 1e-3),
    "same_top": (0.82745, 1e-3),
    "kl_error": (0.007830, 5e-3),
    "kl_median": (0.074448, 5e-3),
    "kl_99": (0.509000, 5e-3),
    "kl_999": (1.016859, 5e-3),
    "kl_max": (1.178506, 5e-3),
}


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, edgedb.Model]:
    """stories260K in float32, as it is and with the weights of llama.cpp's Q4_0."""
    original = shared / "models" / "stories260K"
    if not original.exists():
        pytest.skip(NOT_HERE)
    folder = tmp_path_factory.mktemp("stories")
    found = {}
    for name, change in (("teacher", None), ("Q4_0", _q4_0)):
        source = folder / name
        shutil.copytree(original, source, copy_function=shutil.copyfile)
        if change:
            tensors = load_file(source / "model.safetensors")
            save_file({k: change(v) for k, v in tensors.items()}, source / "model.safetensors")
        export(open_source(source), folder / f"{name}.dbb", Options(method="dense32"))
        found[name] = edgedb.load(folder / f"{name}.dbb", threads=1)
    return found


def _q4_0(weight: np.ndarray) -> np.ndarray:
    if weight.ndim == 1:
        return weight
    if weight.shape[1] % 32:  # what llama.cpp falls back to
        return weight.astype(np.float16).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    return gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)


def test_it_reproduces_what_llama_perplexity_printed(
    stories: dict[str, edgedb.Model], tmp_path: Path
) -> None:
    base = tmp_path / "teacher.kld"
    assert write_base(stories["teacher"], 4 * TEXT, base, window=32) == 17
    found = divergence(stories["Q4_0"], base)
    assert (found.n_windows, found.window, found.n_scored) == (17, 32, 17 * 15)
    for name, (printed, tolerance) in PRINTED.items():
        assert getattr(found, name) == pytest.approx(printed, rel=tolerance), name
    assert found.ratio == pytest.approx(1.156656, rel=1e-3)
    same = divergence(stories["teacher"], base)
    assert same.same_top > 0.99
    assert abs(same.kl) < 1e-5


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model)


@pytest.fixture
def base(model: edgedb.Model, tmp_path: Path) -> Path:
    path = tmp_path / "base"
    write_base(model, TEXT, path, window=40)
    return path


def test_rows_are_the_log_probabilities_of_the_second_half(model: edgedb.Model, base: Path) -> None:
    with open_base(base) as file:
        assert file.vocabulary == model.config.vocab_size
        for window, ids in enumerate(file.ids[:2]):
            logits = model.logits(_as_read(model, ids)).astype(np.float64)
            logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
            expected = np.maximum(logits[20:-1], logits[20:-1].max(axis=1, keepdims=True) - 16)
            found = file.log_probabilities(window, 0, file.n_scored)
            np.testing.assert_allclose(found, expected, atol=16 / 65535)
            part = file.log_probabilities(window, 3, 5)
            np.testing.assert_array_equal(part, found[3:8])


def test_figures_are_those_of_plain_arithmetic(model: edgedb.Model, tmp_path: Path) -> None:
    ids = np.array(model.tokenize(TEXT)[:120]).reshape(3, 40)
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 2, (3, 19, model.config.vocab_size)).astype(np.float32)
    with (tmp_path / "base").open("wb") as file:
        write_header(file, ids, model.config.vocab_size)
        file.write(encode(teacher.reshape(-1, model.config.vocab_size)))
    seen: list[tuple[int, int]] = []
    found = divergence(
        model, tmp_path / "base", max_windows=2, progress=lambda done, n, _: seen.append((done, n))
    )
    assert seen == [(1, 2), (2, 2)]
    student = np.stack([model.logits(_as_read(model, window))[20:-1] for window in ids[:2]])
    log_p, log_q = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        for x in (teacher[:2].astype(np.float64), student.astype(np.float64))
    )
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    assert found.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_error == pytest.approx(kl.std() / 37**0.5, rel=1e-4)
    assert found.kl_999 == pytest.approx(np.quantile(kl, 0.999), rel=1e-4)
    assert found.same_top == (log_p.argmax(-1) == log_q.argmax(-1)).mean()
    for perplexity, log in ((found.perplexity, log_q), (found.base_perplexity, log_p)):
        chosen = np.take_along_axis(log, ids[:2, 21:, None], axis=-1)
        assert perplexity == pytest.approx(math.exp(-chosen.mean()), rel=1e-4)
    assert "2 independent windows of 40 tokens" in found.protocol


def _as_read(model: edgedb.Model, ids: np.ndarray) -> list[int]:
    spec = model.tokenizer_spec
    first = [spec.bos_id] if spec.add_bos and spec.bos_id is not None else [int(ids[0])]
    return [*first, *ids[1:].tolist()]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw[:10], "no file of a teacher's logits"),
        (lambda raw: b"_LOGITS_" + raw[8:], "no file of a teacher's logits"),
        (lambda raw: raw[:-1], "cut short"),
        (lambda raw: raw + b"\0", "cut short"),
        (lambda raw: raw[:8] + b"\2\0\0\0" + raw[12:], "windows of 2 tokens"),
        (lambda raw: raw[:8] + b"\xff" * 12 + raw[20:], "can be read"),
        (lambda raw: raw[:20] + b"\xff" * 4 + raw[24:], "outside of its vocabulary"),
        (lambda raw: raw[: _rows_at(raw)] + b"\xff" * 8 + raw[_rows_at(raw) + 8 :], "none"),
        (lambda raw: raw[: _rows_at(raw)] + b"\0\0\x80\x7f" + raw[_rows_at(raw) + 4 :], "none"),
    ],
)
def test_damaged_files_are_refused(
    model: edgedb.Model, base: Path, change: object, match: str
) -> None:
    assert callable(change)
    base.write_bytes(change(base.read_bytes()))
    with pytest.raises(EdgeDBError, match=match) as error:
        divergence(model, base)
    assert str(base) in str(error.value)


def _rows_at(raw: bytes) -> int:
    window, _, windows = np.frombuffer(raw[8:20], np.uint32).tolist()
    return 20 + 4 * window * windows


def test_what_does_not_fit_is_refused(
    stories: dict[str, edgedb.Model], model: edgedb.Model, tiny_model: Path, base: Path
) -> None:
    with pytest.raises(EdgeDBError, match="vocabulary of 320"):
        divergence(stories["teacher"], base)
    with pytest.raises(EdgeDBError, match="do not fit into a context of 16"):
        divergence(edgedb.load(tiny_model, context=16), base)
    with pytest.raises(EdgeDBError, match="fewer than a window of 200"):
        write_base(model, "the cat", base, window=200)
    with pytest.raises(EdgeDBError, match="window"):
        write_base(model, TEXT, base, window=3)
    assert json.dumps(divergence(model, base).kl)  # what was there before is there still
