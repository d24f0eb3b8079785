"""A run or a model that could never be in the memory of its host is refused before it takes any."""

import json
from dataclasses import replace

import pytest
import safetensors.numpy
from small_run import write_settings

from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import CheckpointError, ConfigError
from lucid.launch.limits import HostMemory
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.training.config import load
from lucid.training.estimates import check_run_fits, memory

MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\nSwapTotal: 50 kB\n"
GROUP = {"memory.max": "700000", "memory.current": "200000", "memory.stat": "inactive_file 100000"}


@pytest.mark.parametrize(
    ("group", "found"),
    [({}, HostMemory(1_024_000, 614_400, 51_200)), (GROUP, HostMemory(700_000, 600_000, 51_200))],
)
def test_the_memory_of_a_host_is_within_its_control_groups(tmp_path, group, found):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text("0::/")
    for name, text in group.items():
        (tmp_path / "sys/fs/cgroup" / name).write_text(text)
    assert HostMemory.read(tmp_path) == found


@pytest.fixture
def config(tmp_path):
    return load(write_settings(tmp_path / "run.yaml", tmp_path / "corpus", tmp_path / "run"))


@pytest.fixture
def host(monkeypatch):
    """A function that gives this host so much memory."""
    return lambda most: monkeypatch.setattr(HostMemory, "read", lambda: HostMemory(most, 0, 0))


def test_a_run_is_refused_only_if_its_least_memory_is_too_much(config, host):
    group = SingleCommunicator()
    host(memory(config, 1).of_rank)
    check_run_fits(config, group)
    host(9_000 * 16)
    with pytest.raises(ConfigError, match=r"^1 rank on .* would take at least 171 kB of memory \(weights 36.1 kB, "):
        check_run_fits(config, group)


def test_all_ranks_of_a_host_are_counted(config, host):
    host(300_000)
    last = SingleCommunicator()
    last.size, last.local_rank = 2, 1
    with pytest.raises(ConfigError, match=r"^2 ranks on "):
        check_run_fits(config, last)
    sharded = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"sharded": True})})
    check_run_fits(sharded, last)


def test_a_model_that_is_too_large_for_the_host_is_refused_before_it_is_read(tmp_path, host):
    config = BERTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    BERTForPreTraining(config).save_pretrained(tmp_path)
    host(10_000)
    with pytest.raises(CheckpointError, match=r"^the weights of .* take 0.0 GB of memory, and this host has 0.0 GB"):
        BERTForPreTraining.from_pretrained(tmp_path)


def test_a_sparse_file_of_a_huge_model_is_refused(tmp_path):
    """Its header fits its `config.json`, and it takes no room on the disk."""
    config = BERTConfig(
        vocab_size=2**30, hidden_size=2048, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    small = replace(config, vocab_size=32)
    BERTForPreTraining(small).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    header, offset = {}, 0
    for name, array in safetensors.numpy.load_file(path).items():
        shape = [config.vocab_size if size == 32 else size for size in array.shape]
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    settings = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "vocab_size": config.vocab_size}))
    with pytest.raises(CheckpointError, match=r"take 8,.* GB of memory"):
        BERTForPreTraining.from_pretrained(tmp_path)
