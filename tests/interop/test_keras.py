"""The authors' Keras files, of both Keras generations, and files that only look like them."""

from __future__ import annotations

import io
import json
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.interop.author_names import author_slots
from drifa_jax.interop.keras import read_keras
from drifa_jax.interop.network_files import assemble, shapes
from drifa_jax.interop.tensors import read_slots, write_slots
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.network_options import NetworkOptions

FILES = ["keras_file_reduced.keras", "keras_file_reduced.weights.h5", "keras3_file_reduced.keras"]


@pytest.mark.parametrize("name", FILES)
def test_every_generation_of_file_gives_the_same_tensors(name, shared, golden, below, small):
    numbers = golden("keras_file_reduced")
    wanted = read_slots(below(numbers, "w/"), author_slots(small), "golden")
    found = read_keras(shared / "parity" / name, small)
    assert len(found) == 1140
    for path, array in wanted.items():
        assert np.array_equal(found[path], array), path


def test_converted_network_predicts_as_in_keras(shared, golden, rel, small):
    """With dropout off, and in the mean and spread of Monte Carlo samples with it on."""
    numbers = golden("keras_file_reduced")
    tensors = read_keras(shared / "parity" / FILES[2], small)
    params, statistics = assemble(small, tensors)
    images = {m: jnp.asarray(numbers[f"x_{i}"]) for i, m in enumerate(small.modalities)}

    num_samples = 96
    # One key per row; the first two rows are without dropout in a call of their own.
    repeated = {m: jnp.repeat(x, num_samples, axis=0) for m, x in images.items()}

    @jax.jit
    def forward(images):
        return build_network(small).apply(params, statistics, images, train=False)[0]

    @jax.jit
    def samples(images, keys):
        return build_network(small).apply(
            params, statistics, images, train=False, dropout_key=keys
        )[0][0]

    logits, seen = forward(images)
    for stage in range(8):
        for i, m in enumerate(small.modalities):
            assert rel(seen[f"stage_{stage}/mifa/{m}"], numbers[f"mifa_{stage}/y_{i}"]) < 2e-5
    assert rel(seen["pooled"], numbers["pooled"]) < 1e-5
    drawn = samples(repeated, jax.random.split(jax.random.key(0), 2 * num_samples))
    for i, task in enumerate(small.tasks):
        assert rel(jax.nn.softmax(logits[task]), numbers[f"probs_{i}"]) < 1e-5
        probs = np.asarray(jax.nn.softmax(drawn[task])).reshape(2, num_samples, -1)
        spread = numbers[f"mc_std_{i}"]
        error = np.sqrt(1 / numbers["mc_n"] + 1 / num_samples)
        assert (np.abs(probs.mean(1) - numbers[f"mc_mean_{i}"]) < 4 * spread * error).all()
        # A sample standard deviation is off by about 1 / sqrt(2 n) of itself; four of those.
        ratio = probs.std(1) / spread
        assert (np.abs(ratio - 1) < 4 / np.sqrt(2 * num_samples) + 0.1).all()


@pytest.fixture(scope="module")
def small(authors_network):
    return authors_network(4)


# Below, files of one block per branch in Keras' layout, made here.


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """A network of one modality that any file of Keras' kind can be written for."""
    return NetworkDescription({"a": 3}, {"cell": 5}, NetworkOptions(width=2))


@pytest.fixture(scope="module")
def written(described, tmp_path_factory):
    """A `.weights.h5` in Keras' layout and its values."""
    tensors = random_tensors(described)
    file = tmp_path_factory.mktemp("keras") / "one.weights.h5"
    write_weights(file, described, tensors)
    return file, tensors


def random_tensors(network):
    rng = np.random.default_rng(0)
    return {
        path: rng.standard_normal(shape).astype(np.float32)
        for path, shape in shapes(network).items()
    }


def write_weights(file, network, tensors):
    """Keras' layout, by the inverse of what the reader does, with slots of an optimizer."""
    from drifa_jax.interop import keras

    named = write_slots(tensors, author_slots(network))
    with h5py.File(file, "w") as opened:
        for place, group in keras._canonical_places(network).items():
            for inside, leaf in keras._variables(place, len(network.modalities)).items():
                opened[f"layers/{group}/{inside}"] = named[f"{place}/{leaf}"]
        opened["optimizer/vars/0"] = np.zeros(3)


def changed(file, tmp_path, change):
    """A copy of an HDF5 file after `change(opened)`."""
    copy = tmp_path / "changed.weights.h5"
    copy.write_bytes(file.read_bytes())
    with h5py.File(copy, "r+") as opened:
        change(opened)
    return copy


def test_weights_file_is_read_without_its_graph(written, described):
    file, tensors = written
    found = read_keras(file, described)
    assert all(np.array_equal(found[path], array) for path, array in tensors.items())


def test_missing_and_unexpected_tensors_are_listed(written, described, tmp_path):
    def change(opened):
        opened.move("layers/conv2d_1/vars/1", "layers/conv2d_1/vars/7")

    with pytest.raises(UserError) as error:
        read_keras(changed(written[0], tmp_path, change), described)
    assert "- branch_0/rra_0/conv1/bias (2,)" in str(error.value)
    assert "+ layers/conv2d_1/vars/7 (2,)" in str(error.value)


def test_nan_is_named(written, described, tmp_path):
    def change(opened):
        opened["layers/dense/vars/0"][3, 2] = np.nan

    with pytest.raises(UserError, match="head_0/kernel hold NaN"):
        read_keras(changed(written[0], tmp_path, change), described)


def test_other_classes_need_a_fresh_head(written, described):
    other = NetworkDescription({"a": 3}, {"cell": 9}, described.options)
    with pytest.raises(UserError, match=r"Only heads differ.*\n?.*--fresh-head cell"):
        read_keras(written[0], other)
    tensors = read_keras(written[0], other, ["cell"])
    params, _ = assemble(other, tensors, jax.random.key(1))
    assert params["heads"]["cell"]["linear"]["kernel"].shape == (16, 9)
    with pytest.raises(ValueError, match="no key"):
        assemble(other, tensors)


def test_truncated_files_are_named(written, described, tmp_path):
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(written[0].read_bytes()[:20000])
    with pytest.raises(UserError, match=r"cut.weights.h5: is damaged or truncated"):
        read_keras(cut, described)


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name.replace("__", "."), content)
    return path


def test_archives_of_other_things_are_refused(described, tmp_path):
    with pytest.raises(UserError, match="no Keras archive"):
        read_keras(archive(tmp_path / "a.keras", readme="hello"), described)
    sequential = json.dumps({"class_name": "Sequential", "config": {"layers": []}})
    file = archive(tmp_path / "b.keras", config__json=sequential, **{"model__weights__h5": b""})
    with pytest.raises(UserError, match="no functional Keras model"):
        read_keras(file, described)


def test_a_foreign_graph_is_named_at_its_layer(described, tmp_path):
    layers = [
        {"name": "input", "class_name": "InputLayer", "config": {}, "inbound_nodes": []},
        {
            "name": "stem",
            "class_name": "Conv2D",
            "config": {"padding": "same", "kernel_size": [7, 7]},
            "inbound_nodes": [[["input", 0, 0, {}]]],
        },
    ]
    graph = {"config": {"layers": layers, "input_layers": ["input", 0, 0], "output_layers": []}}
    file = archive(
        tmp_path / "c.keras",
        config__json=json.dumps(graph),
        model__weights__h5=io.BytesIO().getvalue(),
    )
    with pytest.raises(UserError, match="after stem there should be one DeeperAttentionLayer1"):
        read_keras(file, described)


def test_bottleneck_backbones_are_refused(written):
    options = NetworkOptions(width=2, backbone="resnet50")
    with pytest.raises(UserError, match="'resnet50' has bottleneck blocks"):
        read_keras(written[0], NetworkDescription({"a": 3}, {"cell": 5}, options))


def test_symmetric_padding_is_refused(written):
    options = NetworkOptions(width=2, padding="symmetric")
    with pytest.raises(UserError, match=r'need options.padding "same"'):
        read_keras(written[0], NetworkDescription({"a": 3}, {"cell": 5}, options))


def keras_graph(network, generation):
    """`config.json` of the authors' network as Keras 2 or 3 writes it, with names of no meaning.

    Layers stand in the order of `_layers_in_keras_order`, which the authors' real files check
    against the graph; here the graph is walked back to the same places.
    """
    from drifa_jax.interop import keras

    modalities = range(len(network.modalities))
    layers = []

    def call(kind, *inputs, **config):
        name = f"layer_{997 - len(layers)}"
        layers.append((kind, name, config, inputs))
        return (name, 0)

    def conv(x, size):
        return call("Conv2D", x, padding="same", kernel_size=[size, size])

    def norm(x):
        return call("BatchNormalization", x, epsilon=1e-3, momentum=0.99)

    def mfa(x):
        return call("DeeperAttentionLayer1", x)

    def each(function, xs, *more):
        return [function(x, *more) for x in xs]

    inputs = [call("InputLayer") for _ in modalities]
    xs = each(norm, each(mfa, each(conv, inputs, 7)))
    xs = [call("MaxPooling2D", call("Activation", x)) for x in xs]
    plan = keras.RESNET_PLANS[network.options.backbone]
    for number in range(sum(plan)):
        reshapes = number > 0 and number in np.cumsum(plan)
        ys = each(norm, each(mfa, each(conv, xs, 3)))
        ys = each(mfa, [conv(call("Activation", y), 3) for y in ys])
        shortcuts = each(conv, xs, 1) if reshapes else xs
        after = []
        for m in modalities:
            y = norm(ys[m])
            shortcut = norm(shortcuts[m]) if reshapes else shortcuts[m]
            after.append(call("Activation", call("Add", y, shortcut)))
        if number < sum(plan) - 1:
            after = each(mfa, [call("Dropout", x) for x in after])
        name, _ = call("DeeperAttentionLayer", *after)
        xs = [(name, m) for m in modalities]
    pooled = call("GlobalAveragePooling2D", call("Dropout", call("Concatenate", *xs)))
    outputs = [call("Dense", pooled) for _ in network.tasks]

    def inbound(inputs):
        if generation == 2:
            return [[[name, 0, number, {}] for name, number in inputs]] if inputs else []
        history = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, number]}}
            for name, number in inputs
        ]
        return [{"args": [history], "kwargs": {"mask": None}}] if inputs else []

    return {
        "config": {
            "layers": [
                {"class_name": kind, "name": name, "config": config, "inbound_nodes": inbound(ins)}
                for kind, name, config, ins in layers
            ],
            "input_layers": [[name, 0, number] for name, number in inputs],
            "output_layers": [[name, 0, number] for name, number in outputs],
        }
    }


def in_keras_order(graph):
    """Layer names as Keras sorts a functional model: by depth from the outputs, deepest first,
    and within a depth by first visit of a depth-first walk from the outputs.
    """
    from drifa_jax.interop.keras_graph import KerasGraph

    parsed = KerasGraph(graph, "graph")
    visit, finished = {}, []

    def walk(name):
        if name in visit:
            return
        visit[name] = len(visit)
        for above, _ in parsed.layers[name].inputs:
            walk(above)
        finished.append(name)

    for name, _ in parsed.outputs:
        walk(name)
    depth = dict.fromkeys(visit, 0)
    for name in reversed(finished):
        for above, _ in parsed.layers[name].inputs:
            depth[above] = max(depth[above], depth[name] + 1)
    return sorted(visit, key=lambda name: (-depth[name], visit[name]))


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_groups_are_numbered_as_keras_sorts_layers(num_modalities):
    """Two modalities are also checked by the authors' files; three have none."""
    from drifa_jax.interop import keras
    from drifa_jax.interop.keras_graph import KerasGraph, place_layers

    network = NetworkDescription(
        dict.fromkeys("abc"[:num_modalities], 3), {"cell": 5, "skin": 2}, NetworkOptions(width=2)
    )
    graph = keras_graph(network, 3)
    layers = {layer["name"]: layer for layer in graph["config"]["layers"]}
    graph["config"]["layers"] = [layers[name] for name in in_keras_order(graph)]
    parsed = KerasGraph(graph, "graph")
    groups = keras._groups_of_graph(parsed)
    places = place_layers(parsed, num_modalities)
    found = {place: groups[layer] for place, layer in places.items()}
    assert found == keras._canonical_places(network)


MODALITIES = [{"a": 3, "b": 1}, {"a": 3, "b": 1, "c": 3}]


@pytest.mark.parametrize("modalities", MODALITIES, ids=["two", "three"])
@pytest.mark.parametrize("generation", [2, 3])
def test_an_archive_is_read_by_its_graph(generation, modalities, tmp_path):
    network = NetworkDescription(
        modalities, {"cell": 5, "skin": 2}, NetworkOptions(width=2, backbone="resnet10")
    )
    tensors = random_tensors(network)
    write_weights(tmp_path / "w.h5", network, tensors)
    graph = keras_graph(network, generation)

    def read(name):
        file = archive(
            tmp_path / name,
            config__json=json.dumps(graph),
            model__weights__h5=(tmp_path / "w.h5").read_bytes(),
        )
        return read_keras(file, network)

    found = read("good.keras")
    assert all(np.array_equal(found[path], array) for path, array in tensors.items())

    fusion = [x for x in graph["config"]["layers"] if x["class_name"] == "DeeperAttentionLayer"]
    nodes = fusion[1]["inbound_nodes"][0]
    (nodes if generation == 2 else nodes["args"][0]).reverse()
    with pytest.raises(UserError, match="reads the modalities in another order"):
        read("swapped.keras")


def test_other_constants_are_refused(tmp_path, described, written):
    graph = keras_graph(described, 3)
    norms = [x for x in graph["config"]["layers"] if x["class_name"] == "BatchNormalization"]
    norms[3]["config"]["epsilon"] = 1e-5
    file = archive(
        tmp_path / "a.keras",
        config__json=json.dumps(graph),
        model__weights__h5=written[0].read_bytes(),
    )
    with pytest.raises(UserError, match=r"epsilon 1e-05, .* set options.batch_norm_epsilon"):
        read_keras(file, described)
