"""DRIFA's attention and residual block in plain NumPy, written from the paper's equations alone.

Nothing here is shared with the package: no JAX, loops over records instead of batched products,
spatial positions flattened to rows. Weights are nested dicts as the package names them.
"""

from __future__ import annotations

import numpy as np


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def affine(rows, layer):
    return rows @ layer["kernel"] + layer["bias"]


def hifa(rows, w):
    """HIFA of one record, `rows` `[positions, c]`."""
    g1 = sigmoid(affine(rows, w["conv1"]))
    g2 = sigmoid(affine(g1, w["conv2"]))
    g3 = sigmoid(affine(g1 + g2, w["conv3"]))
    g4 = sigmoid(affine(g3, w["conv4"]))
    shallow = g1.mean(0) + g2.max(0)
    deep = g3.mean(0) + g4.max(0)
    return sigmoid(affine(np.concatenate([shallow, deep]), w["dense"]))


def clia(rows, w):
    """CLIA of one record."""
    first = sigmoid(affine(rows, w["conv1"])).mean(0)
    return first + sigmoid(affine(first, w["conv2"]))


def mfa(x, w):
    """MFA of a batch, `[b, *space, c]`."""
    refined = np.empty_like(x)
    for record, out in zip(x, refined, strict=True):
        rows = record.reshape(-1, record.shape[-1])
        mixed = w["hifa_scale"] * hifa(rows, w["hifa"]) + w["clia_scale"] * clia(rows, w["clia"])
        out[...] = record * sigmoid(mixed) * w["alpha"]
    return refined


def mifa(features, w):
    """MIFA of a batch; `features` modality -> `[b, *space, c]`.

    Where channels differ, `w` projects pooled vectors to one width and the gate back.
    """

    def projected(vector, layers, m):
        return affine(vector, layers[m]) if m in layers else vector

    to_global = w["mgifa"].get("projections", {})
    to_local, backs = w["mlifa"].get("projections", {}), w.get("backs", {})
    refined = {m: np.empty_like(x) for m, x in features.items()}
    num_records = len(next(iter(features.values())))
    for record in range(num_records):
        rows = {m: x[record].reshape(-1, x.shape[-1]) for m, x in features.items()}
        mgifa, mlifa = 0.0, 0.0
        for pool in (np.min, np.mean, np.max):
            together = sum(projected(pool(r, axis=0), to_global, m) for m, r in rows.items())
            mgifa = mgifa + sigmoid(affine(together, w["mgifa"]["dense"]))
        for m, r in rows.items():
            local = sigmoid(affine(r, w["mlifa"]["convs"][m]))
            pooled = local.min(0) + local.mean(0) + local.max(0)
            mlifa = mlifa + projected(pooled, to_local, m)
        mixed = w["mgifa_scale"] * mgifa + w["mlifa_scale"] * mlifa
        for m, x in features.items():
            gate = sigmoid(projected(mixed, backs, m))
            refined[m][record] = x[record] * gate * w["alpha"][m]
    return refined


def convolution(x, layer, stride):
    """SAME convolution of `[b, h, w, c]`, odd pixel of padding at the end."""
    kernel = layer["kernel"]
    window = kernel.shape[0]
    sizes = [-(-n // stride) for n in x.shape[1:3]]
    pads = [max((s - 1) * stride + window - n, 0) for s, n in zip(sizes, x.shape[1:3], strict=True)]
    padded = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    out = np.empty((x.shape[0], *sizes, kernel.shape[-1]), x.dtype)
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            top, left = i * stride, j * stride
            patch = padded[:, top : top + window, left : left + window]
            out[:, i, j] = np.tensordot(patch, kernel, axes=3) + layer["bias"]
    return out


def batch_norm(x, w, statistics, epsilon=1e-3):
    """With the batch's own statistics when `statistics` is None."""
    mean = x.mean((0, 1, 2)) if statistics is None else statistics["mean"]
    var = x.var((0, 1, 2)) if statistics is None else statistics["var"]
    return (x - mean) / np.sqrt(var + epsilon) * w["scale"] + w["bias"]


def rra(x, w, statistics, stride):
    """RRA block of a batch; batch statistics where `statistics` is None."""
    of = (lambda name: None) if statistics is None else statistics.get
    y = mfa(convolution(x, w["conv1"], stride), w["mfa1"])
    y = np.maximum(batch_norm(y, w["norm1"], of("norm1")), 0.0)
    y = batch_norm(mfa(convolution(y, w["conv2"], 1), w["mfa2"]), w["norm2"], of("norm2"))
    if "projection" in w:
        x = convolution(x, w["projection"], stride)
        x = batch_norm(x, w["projection_norm"], of("projection_norm"))
    return np.maximum(y + x, 0.0)


def bottleneck(x, w, statistics, stride):
    """Bottleneck RRA block of a batch; batch statistics where `statistics` is None."""
    of = (lambda name: None) if statistics is None else statistics.get
    y = mfa(convolution(x, w["conv1"], 1), w["mfa1"])
    y = np.maximum(batch_norm(y, w["norm1"], of("norm1")), 0.0)
    y = mfa(convolution(y, w["conv2"], stride), w["mfa2"])
    y = np.maximum(batch_norm(y, w["norm2"], of("norm2")), 0.0)
    y = batch_norm(convolution(y, w["conv3"], 1), w["norm3"], of("norm3"))
    if "projection" in w:
        x = convolution(x, w["projection"], stride)
        x = batch_norm(x, w["projection_norm"], of("projection_norm"))
    return np.maximum(y + x, 0.0)
