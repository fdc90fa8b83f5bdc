import dataclasses

import jax
import numpy as np

from drifa_jax.explain.gates import gate_rows, gates
from drifa_jax.models.gates import STEM
from drifa_jax.models.pixels import scale_pixels


def test_every_gate_is_found_in_the_order_of_the_features(restored, records):
    found = gates(restored, records[0])
    inner = [("mfa1", "ct"), ("mfa1", "mri"), ("mfa2", "ct"), ("mfa2", "mri")]
    assert [(g.stage, g.inside, g.kind, g.modality, g.part) for g in found] == [
        (STEM, "mfa", "mfa", "ct", "gate"), (STEM, "mfa", "mfa", "mri", "gate"),
        *[(0, inside, "mfa", m, "gate") for inside, m in inner],
        (0, "", "mfa", "ct", "gate"), (0, "", "mfa", "mri", "gate"),
        *[(0, "", "mifa", None, part) for part in ("gate", "mgifa", "mlifa")],
        *[(1, inside, "mfa", m, "gate") for inside, m in inner],
        *[(1, "", "mifa", None, part) for part in ("gate", "mgifa", "mlifa")],
    ]  # fmt: skip
    widths = {STEM: 4, 0: 4, 1: 8}
    for gate in found:
        assert gate.values.shape == (2, 16, widths[gate.stage])
        for scale in gate.scales.values():
            assert scale.shape == (2, widths[gate.stage])
        if gate.part == "gate":
            assert (gate.values > 0).all() and (gate.values < 1).all()


def test_gates_inside_are_those_of_the_equations(restored, records, reference):
    """From the pixels of the stem, in NumPy, for the second member."""
    pixels, _ = records
    found = next(g for g in gates(restored, pixels) if (g.stage, g.modality) == (STEM, "mri"))
    stem = jax.tree.map(
        lambda leaf: np.asarray(leaf[1], np.float64), restored.params["branches"]["mri"]["stem"]
    )
    x = reference.convolution(pixels["mri"][:3] / 255.0, stem["conv"], 2)
    weight = found.values[1, :3] * found.scales["mri"][1]
    np.testing.assert_allclose(
        x * weight[:, None, None], reference.mfa(x, stem["mfa"]), rtol=1e-4, atol=1e-6
    )


def test_gates_between_stages_are_those_that_answers_went_through(restored, records, network):
    params, statistics = jax.tree.map(lambda leaf: leaf[0], (restored.params, restored.statistics))
    pixels = {m: x[:2] for m, x in records[0].items()}
    (_, seen), _ = jax.jit(lambda *s: network.apply(*s, scale_pixels(pixels), train=False))(
        params, statistics
    )
    for gate in gates(restored, pixels):
        if not gate.inside:
            place = f"mfa/{gate.modality}/gate" if gate.kind == "mfa" else f"mifa/{gate.part}"
            np.testing.assert_allclose(
                gate.values[0], seen[f"stage_{gate.stage}/{place}"], rtol=1e-5, atol=1e-6
            )


def test_rows_say_how_open_and_how_selective_a_gate_is(restored, records):
    found = gates(restored, records[0])
    rows = gate_rows(found)
    # MFA of each modality: one in the stem, two in each of two blocks, one between the stages;
    # and MIFA once a modality and stage.
    assert len(rows) == 2 * (1 + 2 * 2 + 1) + 2 * 2
    assert rows[0]["place"] == "stem" and rows[2]["place"] == "block 0, after convolution 1"
    mifa = next(g for g in found if (g.stage, g.kind, g.part) == (0, "mifa", "gate"))
    row = next(r for r in rows if (r["stage"], r["kind"], r["modality"]) == (0, "mifa", "mri"))
    weight = mifa.values * mifa.scales["mri"][:, None]
    np.testing.assert_allclose(row["mean"], weight.mean(), rtol=1e-5)
    frozen = dataclasses.replace(mifa, values=np.full_like(mifa.values, 0.5))
    assert gate_rows([frozen])[0]["between_records"] < 1e-6


def test_gates_of_records_differ_with_what_they_show(restored, records):
    pixels, labels = records
    found = gates(restored, pixels)
    gate = next(g for g in found if (g.stage, g.inside, g.modality) == (0, "", "mri")).values[0]
    with_square, without = gate[labels == 1], gate[labels == 0]
    between = np.abs(with_square.mean(0) - without.mean(0)).max()
    assert between > with_square.std(0).max()
