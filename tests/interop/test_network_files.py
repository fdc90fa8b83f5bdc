"""Networks on disk, and every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest

from drifa_jax.commands import convert, parity
from drifa_jax.errors import UserError
from drifa_jax.interop.author_names import author_slots
from drifa_jax.interop.network_files import assemble, load_network, save_network, shapes
from drifa_jax.interop.parity import compare, first_divergence, jax_values, torch_values
from drifa_jax.interop.tensors import flatten, unflatten
from drifa_jax.interop.torch_weights import read_torch, to_torch, write_torch
from drifa_jax.models.building import build_network
from drifa_jax.models.description import (
    ModalityDescription,
    NetworkDescription,
    load_description,
)
from drifa_jax.network_options import NetworkOptions

torch = pytest.importorskip("torch")

TINY = NetworkDescription(
    {"mri": 1, "ct": 3},
    {"tumour": 3},
    NetworkOptions(width=2, backbone="resnet10", padding="symmetric"),
)


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {
        path: (rng.standard_normal(shape) * 0.3 + path.endswith(("var", "scale"))).astype(
            np.float32
        )
        if not path.endswith("var")
        else rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for path, shape in shapes(TINY).items()
    }


@pytest.fixture(scope="module")
def weights(tensors):
    return assemble(TINY, tensors)


@pytest.fixture
def folder(tmp_path, weights):
    save_network(tmp_path / "net", TINY, *weights)
    return tmp_path / "net"


@pytest.fixture
def twin_file(tmp_path, weights):
    write_torch(tmp_path / "twin.pth", TINY, *weights)
    return tmp_path / "twin.pth"


def drifa(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_saved_network_loads_as_it_was(folder, weights):
    functional, params, statistics, network = load_network(folder)
    assert network == TINY
    assert functional is build_network(network)
    for found, wanted in zip((params, statistics), weights, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_nothing_is_overwritten(folder, weights):
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save_network(folder, TINY, *weights)
    assert (folder / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 3}, "this version reads formats 1 and 2"),
        ({"modalities": {"mri": "one"}}, "modalities.mri.channels is 'one'"),
        ({"modalities": {"m.r.i": 1}}, "need a letter"),
        ({"depth": 3}, "no field 'depth'"),
        ({"options": {"widht": 3}}, r"no field 'options.widht'. Did you mean 'width'\?"),
        ({"options": {"backbone": "vgg"}}, "backbone is 'vgg'"),
        ({"options": {"layers": {"padding": "valid"}}}, "padding is 'valid'"),
        ({"options": {"layers": {"dtype": "int8"}}}, "compute_dtype is 'int8'"),
        ({"options": {"width": "wide"}}, "network.json"),
    ],
)
def test_a_wrong_description_names_its_field(folder, change, message):
    file = folder / "network.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | change))
    with pytest.raises(UserError, match=r"network\.json: is damaged or was changed"):
        load_network(folder)
    written.pop("digest")
    file.write_text(json.dumps(written | change))
    with pytest.raises(UserError, match=message):
        load_network(folder)


def test_a_description_of_the_first_format_is_read(folder):
    plain = {
        "format": 1,
        "modalities": {"mri": 1, "ct": 3},
        "tasks": {"tumour": 3},
        "options": {
            "width": 2,
            "backbone": "resnet10",
            "layers": {"padding": "symmetric", "dtype": "float32"},
        },
    }
    (folder / "network.json").write_text(json.dumps(plain))
    assert load_description(folder) == TINY


def test_a_table_is_saved_and_loaded_like_an_image(tmp_path):
    network = NetworkDescription(
        {"mri": 1, "blood": ModalityDescription(4, "table")}, {"tumour": 3}, TINY.options
    )
    weights = build_network(network).init(jax.random.key(0))
    save_network(tmp_path / "net", network, *weights)
    _, *loaded, found = load_network(tmp_path / "net")
    assert found == network
    jax.tree.map(np.testing.assert_array_equal, tuple(loaded), weights)


def test_unreadable_descriptions_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_description(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"modalities": ')
    with pytest.raises(UserError, match=r"half\.json: is damaged or was changed"):
        load_description(tmp_path / "half.json")


def test_a_truncated_weights_file_is_named(folder):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights.safetensors: is no whole safetensors file"):
        load_network(folder)


def test_convert_there_and_back(folder, twin_file, tensors, tmp_path, capsys):
    for kind, file in (("torch", "b.pth"), ("safetensors", "c.safetensors")):
        assert drifa(convert, "--from", "network", "--input", folder, "--to", kind,
                     "--output", tmp_path / file) == 0  # fmt: skip
        back = tmp_path / f"from_{kind}"
        assert drifa(convert, "--from", kind, "--input", tmp_path / file, "--config", folder,
                     "--output", back) == 0  # fmt: skip
        _, params, statistics, _ = load_network(back)
        found = flatten(params) | flatten(statistics)
        assert all(np.array_equal(found[path], tensors[path]) for path in tensors)
    assert "padding is 'symmetric'" in capsys.readouterr().out


def test_a_fresh_head_is_said_aloud(twin_file, tmp_path, capsys):
    config = tmp_path / "more.json"
    config.write_text(json.dumps(TINY.to_json() | {"tasks": {"tumour": 6}}))
    arguments = ["--from", "torch", "--input", twin_file, "--config", config, "--output"]
    with pytest.raises(UserError, match="--fresh-head tumour"):
        drifa(convert, *arguments, tmp_path / "no")
    assert drifa(convert, *arguments, tmp_path / "out", "--fresh-head", "tumour") == 0
    assert "head 'tumour' is fresh (6 classes)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"names \['stage'\]; the tasks are \['tumour'\]"):
        drifa(convert, *arguments, tmp_path / "no", "--fresh-head", "stage")


CONFIG = """
from drifa_jax.config import default_config, modality

def get_config(variant=""):
    config = default_config()
    config.data.modalities = {
        "mri": modality(height=16, width=16, channels=1),
        "ct": modality(height=32, width=32, channels=1),
    }
    config.data.phantoms.num_train = config.data.phantoms.num_validation = 4
    config.data.phantoms.num_test = 4
    config.model.width, config.model.backbone = 2, "resnet10"
    config.model.padding = "symmetric"
    return config
"""


def test_a_training_config_describes_the_network(tmp_path, capsys):
    """`--config FILE.py` takes modalities, tasks and options from what a run would train."""
    from drifa_jax.cli import main

    file = tmp_path / "study.py"
    file.write_text(CONFIG)
    network = NetworkDescription({"mri": 1, "ct": 1}, {"tumour": 4, "stroke": 3}, TINY.options)
    drawn = np.random.default_rng(0)
    tensors = {
        path: drawn.standard_normal(shape).astype(np.float32)
        for path, shape in shapes(network).items()
    }
    write_torch(tmp_path / "twin.pth", network, *assemble(network, tensors))
    arguments = ["convert", "--from", "torch", "--input", str(tmp_path / "twin.pth")]
    arguments += ["--config", str(file), "--output", str(tmp_path / "net")]
    # An override reaches the description: it no longer fits the file.
    assert main([*arguments, "--config.model.width=4"]) == 1
    assert "does not fit the network" in capsys.readouterr().err
    assert main(arguments) == 0
    _, params, _, found = load_network(tmp_path / "net")
    assert (found.channels, found.tasks) == (network.channels, network.tasks)
    assert found.options == network.options and found.modalities["mri"].size == (16, 16)
    path = "heads/tumour/linear/kernel"
    np.testing.assert_array_equal(flatten(params)[path], tensors[path])


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def damaged(kind, good, folder):
    """A file that must not be converted."""
    bad = folder / f"{kind}.pth"
    state = torch.load(good, weights_only=True)
    if kind == "code":
        torch.save({"x": Payload(folder / "owned")}, bad)
    elif kind == "pickle":
        bad.write_bytes(pickle.dumps(Payload(folder / "owned")))
    elif kind == "truncated":
        bad.write_bytes(good.read_bytes()[:2000])
    elif kind == "nan":
        state["heads.tumour.linear.bias"][1] = float("nan")
        torch.save(state, bad)
    elif kind == "integers":
        state["heads.tumour.linear.bias"] = torch.zeros(3, dtype=torch.int32)
        torch.save(state, bad)
    elif kind == "foreign":
        torch.save(torch.nn.Linear(3, 2).state_dict(), bad)
    elif kind == "list":
        torch.save([torch.zeros(2)], bad)
    return bad


@pytest.mark.parametrize(
    "kind, message",
    [
        ("code", "was not opened: loading such a pickle can run code"),
        ("pickle", "was not opened: loading such a pickle can run code"),
        ("truncated", "is damaged or truncated"),
        ("nan", r"heads.tumour.linear.bias hold NaN"),
        ("integers", r"heads.tumour.linear.bias has dtype int32"),
        ("foreign", r"\+ bias \(2,\)"),
        ("list", "holds no state dict"),
        ("absent", "there is no file"),
    ],
)
def test_bad_torch_files_are_named_and_leave_no_output(kind, message, folder, twin_file, tmp_path):
    bad = damaged(kind, twin_file, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        drifa(convert, "--from", "torch", "--input", bad, "--config", folder,
              "--output", tmp_path / "out")  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / "owned").exists()


def test_parity_passes_and_writes_its_report(folder, tmp_path, capsys):
    out = tmp_path / "report"
    code = drifa(parity, "--from", "network", "--input", folder, "--size", 32, "--output", out)
    printed = capsys.readouterr().out
    assert code == 0
    assert "PARITY" in printed and "NO PARITY" not in printed
    report = json.loads((out / "parity.json").read_text())
    assert report["passed"] and report["first_divergence"] is None
    rows = report["comparisons"]["JAX float32 against PyTorch"]
    assert rows[0]["name"] == "stage_0/rra/ct" and rows[-1]["name"] == "logits/tumour"
    bfloat16 = report["comparisons"]["JAX bfloat16 against highest precision"]
    # Eight bits of mantissa: visible, and no more than a few per cent here.
    assert 1e-4 < max(row["max_rel"] for row in bfloat16) < 0.2
    assert (out / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert drifa(parity, "--from", "network", "--input", folder, "--size", 32,
                 "--tolerance", 1e-12) == 1  # fmt: skip


def test_the_first_divergent_layer_is_found(weights, tensors):
    """One gate of the second stage is changed on one side."""
    path = "fusion/stage_1/mifa/mlifa_scale"
    other = assemble(TINY, tensors | {path: tensors[path] + 1})
    images = {m: np.ones((1, 32, 32, c), np.float32) for m, c in TINY.channels.items()}
    rows = compare(jax_values(TINY, *weights, images), torch_values(TINY, *other, images))
    divergence = first_divergence(rows, 3e-5)
    assert divergence.name == "stage_1/mifa/gate"
    names = [row.name for row in rows]
    before = rows[: names.index(divergence.name)]
    assert before and all(row.max_rel < 3e-5 for row in before)


def test_parity_reads_folders_of_images(folder, tmp_path):
    from PIL import Image

    for modality in ("mri", "ct"):
        (tmp_path / "images" / modality).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / modality / "one.png")
    options = argparse.Namespace(images=str(tmp_path / "images"), batch=1, size=32)
    images = parity.read_images(TINY, options)
    assert images["mri"].shape == (1, 32, 32, 1) and images["ct"].shape == (1, 32, 32, 3)
    assert 0.2 < images["ct"].mean() < 0.8
    options.batch = 2
    with pytest.raises(UserError, match="holds 1 images but --batch is 2"):
        parity.read_images(TINY, options)


AVERAGED = NetworkDescription(
    {"mri": 1, "ct": 1}, {"tumour": 3}, dataclasses.replace(TINY.options, readout="average")
)


@pytest.fixture(scope="module")
def averaged():
    """Random weights of a network with a head per modality."""
    rng = np.random.default_rng(1)
    return assemble(
        AVERAGED,
        {
            path: rng.uniform(0.5, 1.5, shape).astype(np.float32)
            if path.endswith("var")
            else (rng.standard_normal(shape) * 0.3).astype(np.float32)
            for path, shape in shapes(AVERAGED).items()
        },
    )


def test_averaged_heads_go_to_torch_and_back_and_pass_parity(averaged, tmp_path, capsys):
    save_network(tmp_path / "net", AVERAGED, *averaged)
    for kind, file in (("torch", "a.pth"), ("safetensors", "b.safetensors")):
        assert drifa(convert, "--from", "network", "--input", tmp_path / "net", "--to", kind,
                     "--output", tmp_path / file) == 0  # fmt: skip
        back = tmp_path / f"from_{kind}"
        assert drifa(convert, "--from", kind, "--input", tmp_path / file, "--config",
                     tmp_path / "net", "--output", back) == 0  # fmt: skip
        _, params, statistics, network = load_network(back)
        assert network == AVERAGED
        for found, wanted in zip((params, statistics), averaged, strict=True):
            jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert drifa(parity, "--from", "network", "--input", tmp_path / "net", "--size", 32) == 0
    assert "NO PARITY" not in capsys.readouterr().out


def test_averaged_heads_may_be_fresh(averaged, tmp_path, capsys):
    """The weights of the heads differ from each other and from the file's; all else is kept."""
    write_torch(tmp_path / "twin.pth", AVERAGED, *averaged)
    config = tmp_path / "more.json"
    config.write_text(json.dumps(AVERAGED.to_json() | {"tasks": {"tumour": 6}}))
    arguments = ["--from", "torch", "--input", tmp_path / "twin.pth", "--config", config]
    with pytest.raises(UserError, match="--fresh-head tumour"):
        drifa(convert, *arguments, "--output", tmp_path / "no")
    assert drifa(convert, *arguments, "--output", tmp_path / "out", "--fresh-head", "tumour") == 0
    assert "head 'tumour' is fresh (6 classes)" in capsys.readouterr().out
    _, params, _, _ = load_network(tmp_path / "out")
    heads = params["heads"]["tumour"]["linear"]
    assert {m: of["kernel"].shape for m, of in heads.items()} == {"mri": (16, 6), "ct": (16, 6)}
    assert not np.array_equal(heads["mri"]["kernel"], heads["ct"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, params["fusion"], averaged[0]["fusion"])


def test_a_readout_that_the_authors_lack_is_named():
    with pytest.raises(UserError, match="no readout 'average'"):
        author_slots(AVERAGED)


def test_twin_state_is_complete(weights):
    """What we hand to PyTorch loads strictly, counters included."""
    from drifa_jax.interop.torch_weights import torch_twin

    torch_twin(TINY).load_state_dict(to_torch(TINY, *weights), strict=True)
    assert unflatten(flatten(weights[0])).keys() == weights[0].keys()


def test_weights_of_a_backbone_alone_point_to_the_flag_that_reads_them(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=r"names no branch .*conv1\.weight.* --from pretrained"):
        read_torch(tmp_path / "resnet18.pth", TINY)
