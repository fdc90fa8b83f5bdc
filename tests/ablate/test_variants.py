import dataclasses

import pytest

from drifa_jax.ablate.variants import chosen, left_out, variants
from drifa_jax.config import from_mapping, modality
from drifa_jax.errors import UserError
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.network_options import PAPER


@pytest.fixture
def paper_config(tiny_config):
    """With every part of the paper."""

    def config():
        tiny = tiny_config()
        parts = {name: getattr(PAPER, name) for name in ("mfa_parts", "fuse_at")}
        return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, **parts))

    return config


def names(config):
    return [variant.name for variant in variants(config)]


def files_config(**data):
    return from_mapping(
        {
            "data": {
                "source": "files",
                "modalities": {"mri": modality(task="tumour"), "ct": modality(task="stroke")},
                **data,
            }
        }
    )


def test_every_part_of_the_paper_can_be_taken_away(paper_config):
    expected = {
        "drifa", "mfa_off", "hifa_off", "clia_off", "rra_attention_off", "mifa_off", "mgifa_off",
        "mlifa_off", "dropout_off", "concatenation", "late_averaging", "only_mri", "only_ct",
    }  # fmt: skip
    assert set(names(paper_config())) == expected


def test_index_pairing_is_a_variant_where_strangers_are_paired(paper_config):
    assert {"index_pairing", "by_task_pairing"} <= set(names(files_config(pairing="random")))
    assert "index_pairing" not in names(files_config(pairing="index"))
    assert "index_pairing" not in names(paper_config())  # the phantoms are pairs


def test_what_would_repeat_a_row_is_left_out(paper_config):
    config = paper_config()
    plain = dataclasses.replace(
        config, model=dataclasses.replace(config.model, mfa_parts=(), stage_mfa_parts=())
    )
    assert "mfa_off" not in names(plain)
    assert left_out(plain)["mfa_off"] == "drifa"
    assert left_out(plain)["concatenation"] == "mifa_off"
    with pytest.raises(UserError, match="'mfa_off' would repeat 'drifa'"):
        chosen(plain, ("mfa_off",))


def test_a_variant_changes_the_parameters_that_it_should_and_no_others(paper_config):
    config = paper_config()

    def paths(variant):
        model = variant.of(config).model
        network = build_network(NetworkDescription({"mri": 1, "ct": 1}, {"tumour": 4}, model))
        found = set()

        def walk(tree, path):
            for key, child in tree.items():
                walk(child, (*path, key)) if isinstance(child, dict) else found.add((*path, key))

        walk(network.abstract_params, ())
        return found

    by_name = {variant.name: paths(variant) for variant in variants(config)}
    everything = by_name["drifa"]
    for name, part in (("hifa_off", "hifa"), ("clia_off", "clia"), ("mgifa_off", "mgifa"),
                       ("mlifa_off", "mlifa"), ("mifa_off", "mifa")):  # fmt: skip
        gone = everything - by_name[name]
        assert gone and all(any(part in key for key in path) for path in gone), name
        assert not any(part in path for path in by_name[name]), name
    assert not any(
        "mfa" in key or "mifa" in key for path in by_name["concatenation"] for key in path
    )
    assert any(path[:2] == ("fusion", "stage_0") for path in by_name["rra_attention_off"])
    assert by_name["dropout_off"] == everything
    assert {path[3] for path in by_name["late_averaging"] if path[0] == "heads"} == {"mri", "ct"}


def test_the_reference_is_always_among_the_chosen(paper_config):
    assert [v.name for v in chosen(paper_config(), ("mfa_off",))] == ["drifa", "mfa_off"]
    with pytest.raises(UserError, match="there is no 'attention_off'; choose among drifa"):
        chosen(paper_config(), ("attention_off",))
