"""A key that does not exist, and the setting that is meant by it."""

import pytest

from segresmamba.config.suggest import _SYNONYMS, all_keys, likely_key

MEANT = [
    ("train.learning_rat", "train.lr"),
    ("learning_rate", "train.lr"),
    ("train.lrr", "train.lr"),
    ("lr", "train.lr"),
    ("data.patch_size", "data.patch"),
    ("patchsize", "data.patch"),
    ("data.pach", "data.patch"),
    ("batchsize", "train.batch_size"),
    ("data.batch_size", "train.batch_size"),
    ("gpus", "cluster.gpus"),
    ("cluster.gpu_per_node", "cluster.gpus_per_node"),
    ("cluster.num-gpus", "cluster.gpus_per_node"),
    ("trian", "train"),
    ("train.workers", "data.workers"),
    ("cluster.partiton", "cluster.partition"),
    ("num_workers", "data.workers"),
    ("foo", None),
    ("train.zzz", None),
]


@pytest.mark.parametrize(("written", "meant"), MEANT)
def test_what_is_meant_is_found_by_name_meaning_or_spelling(written: str, meant: str) -> None:
    assert likely_key(written, all_keys()) == meant


@pytest.mark.parametrize("written", ["train.loss", "loss_function", "criterion"])
def test_the_loss_is_found_where_it_is_set(written: str) -> None:
    keys = all_keys()
    assert likely_key(written, keys) == next(one for one in _SYNONYMS["loss"] if one in keys)


def test_every_synonym_leads_to_a_setting() -> None:
    later = {"train.init_from"}  # a setting of another branch of work
    keys = set(all_keys())
    for synonym, meant in _SYNONYMS.items():
        assert synonym == synonym.lower().replace("_", "")
        assert keys & set(meant) or set(meant) <= later
