"""A network of another package goes the way of every other: planned, saved, loaded."""

from pathlib import Path

import pytest
import torch

from segresmamba import data
from segresmamba.config import Config, load_config
from segresmamba.errors import ConfigError
from segresmamba.planner.simulation import simulate
from segresmamba.task.task import build_network
from segresmamba.task.weights import WeightsFacts, load_network, save_weights

LABELS = {"background": 0, "ball": 1}


@pytest.fixture
def config() -> Config:
    """The attention U-Net that docs/settings.md shows."""
    words = ["model.target=monai.networks.nets.attentionunet:AttentionUnet", "model.stride=4"]
    kwargs = "model.kwargs={spatial_dims: 3, channels: [4,8,8], strides: [2,2]}"
    return load_config([*words, kwargs, "data.patch=[16,16,16]"])


def test_its_memory_is_simulated(config: Config) -> None:
    found = simulate(config, 1, LABELS, 1, "cpu")
    assert found.weights_bytes == sum(p.nbytes for p in build_network(config, 1, 2).parameters())
    assert found.peak_bytes > 16**3 * 4


def test_its_weights_are_saved_and_loaded(config: Config, tmp_path: Path) -> None:
    network = build_network(config, 1, 2).eval()
    facts = WeightsFacts(1, 0.5, LABELS, ("T1",), data.Preprocessing())
    save_weights(tmp_path / "weights.pt", network.state_dict(), facts)
    loaded = load_network(tmp_path / "weights.pt", config).network.eval()
    x_BCDHW = torch.randn(1, 1, 15, 16, 17)
    torch.testing.assert_close(loaded(x_BCDHW), network(x_BCDHW))


def test_a_mistake_is_named_before_a_run_begins(config: Config) -> None:
    model = config.model.model_copy(update={"kwargs": {"depth": 3}})
    with pytest.raises(ConfigError, match="does not take these arguments"):
        build_network(config.model_copy(update={"model": model}), 1, 2)
