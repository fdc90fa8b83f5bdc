import dataclasses

import numpy as np

from drifa_jax.explain.gates import gate_rows, gates


def test_every_gate_between_the_stages_is_found(restored, records):
    found = gates(restored, records[0])
    assert [(g.stage, g.kind, g.modality, g.part) for g in found] == [
        (0, "mfa", "ct", "gate"), (0, "mfa", "mri", "gate"), (0, "mifa", None, "gate"),
        (0, "mifa", None, "mgifa"), (0, "mifa", None, "mlifa"), (1, "mifa", None, "gate"),
        (1, "mifa", None, "mgifa"), (1, "mifa", None, "mlifa"),
    ]  # fmt: skip
    widths = {0: 4, 1: 8}
    for gate in found:
        assert gate.values.shape == (2, 16, widths[gate.stage])
        if gate.part == "gate":
            assert (gate.values > 0).all() and (gate.values < 1).all()


def test_rows_say_how_open_and_how_selective_a_gate_is(restored, records):
    found = gates(restored, records[0])
    rows = gate_rows(found)
    # MFA of each modality, and MIFA once a modality and stage.
    assert len(rows) == 2 + 2 * 2
    mifa = next(g for g in found if (g.stage, g.kind, g.part) == (0, "mifa", "gate"))
    row = next(r for r in rows if (r["stage"], r["kind"], r["modality"]) == (0, "mifa", "mri"))
    weight = mifa.values * mifa.scales["mri"][:, None]
    np.testing.assert_allclose(row["mean"], weight.mean(), rtol=1e-5)
    frozen = dataclasses.replace(mifa, values=np.full_like(mifa.values, 0.5))
    assert gate_rows([frozen])[0]["between_records"] < 1e-6


def test_gates_of_records_differ_with_what_they_show(restored, records):
    pixels, labels = records
    gate = gates(restored, pixels)[1].values[0]
    with_square, without = gate[labels == 1], gate[labels == 0]
    between = np.abs(with_square.mean(0) - without.mean(0)).max()
    assert between > with_square.std(0).max()
