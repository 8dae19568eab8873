"""Data-parallel training by two processes on the CPU (gloo) is training by one: DDP, and FSDP2 with sharded weights."""

import os
import subprocess
import sys
from pathlib import Path

import aft
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

WORLD, STEPS, BATCH, T, D = 2, 10, 4, 12, 8
SECONDS = 120


class Network(torch.nn.Module):
    """All five layers, one after another, each in a residual branch."""

    def __init__(self):
        super().__init__()
        options = dict(dtype=torch.float64)
        self.layers = torch.nn.ModuleList([
            aft.nn.AFTSimple(D, **options),
            aft.nn.AFTLocal(D, T, window=3, factor_channels=4, **options),
            aft.nn.AFTConv1d(D, heads=4, kernel=3, **options),
            aft.nn.AFTConv2d(D, heads=2, kernel=3, grid=(3, 4), **options),
            aft.nn.AFTFull(D, T, factor_channels=4, **options),
        ])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def network_at_the_start():
    torch.manual_seed(3)
    return Network()


def train(wrap, rank=0, world=1):
    """The mean losses of ten steps and the weights after them; `wrap` makes the model, each rank has its own rows."""
    network = network_at_the_start()
    model = wrap(network)
    # Not Adam: a shift of all keys changes nothing, so the gradient of their bias is rounding alone; it scales that up.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        x, target = torch.randn(2, BATCH, T, D, dtype=torch.float64)
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        loss = (model(x[mine]) - target[mine]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / world
        if world > 1:
            distributed.all_reduce(mean)
        losses.append(mean)
    weights = {}
    for name, parameter in network.named_parameters():
        weights[name] = (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()
    return torch.stack(losses), weights


def shard(network):
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in network.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    assert all(p.to_local().numel() < p.numel() for p in network.parameters() if p.shape[0] >= WORLD)
    return network


WRAPS = {"ddp": DistributedDataParallel, "fsdp2": shard}


def main(rank, folder):
    """One of the processes; rank 0 leaves what each way of wrapping gave."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    for name, wrap in WRAPS.items():
        result = train(wrap, rank, WORLD)
        if rank == 0:
            torch.save(result, f"{folder}/{name}")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    try:
        for rank in range(WORLD):
            with (path / f"said {rank}").open("w") as said:
                command = [sys.executable, __file__, str(rank), path]
                processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
        codes = [process.wait(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * WORLD, "\n".join((path / f"said {rank}").read_text() for rank in range(WORLD))
    return path


@pytest.mark.parametrize("name", WRAPS)
def test_two_processes_are_one(name, folder):
    losses, weights = torch.load(folder / name)
    wanted_losses, wanted = train(lambda network: network)
    torch.testing.assert_close(losses, wanted_losses, rtol=0, atol=1e-12)
    assert losses[-1] < losses[0]
    assert weights.keys() == wanted.keys()
    begin = dict(network_at_the_start().named_parameters())
    for key, weight in weights.items():
        torch.testing.assert_close(weight, wanted[key], rtol=0, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
        assert not torch.equal(weight, begin[key]), key  # it has learned


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
