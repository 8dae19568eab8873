"""Trains an AFT-local language model of bytes on tiny Shakespeare and lets it write.

    python examples/train_aft_local.py
    torchrun --nproc-per-node 2 examples/train_aft_local.py      # data parallel: NCCL on GPUs, Gloo on CPUs
"""

# %% What it is trained on, and with what
import argparse
import lzma
import os
import pathlib

import aft.models
import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for name, default in {"steps": 1000, "batch": 16, "layers": 2, "channels": 128, "context": 128, "window": 32}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--save", metavar="FILE", help="where to keep the model, for `aft generate FILE`")
options = parser.parse_args()

packed = pathlib.Path(__file__).parents[1] / "data" / "tinyshakespeare.txt.xz"
text = torch.frombuffer(bytearray(lzma.decompress(packed.read_bytes())), dtype=torch.uint8)

# %% One process, or those of torchrun: each has a device of its own and draws its part of the batch
rank, processes, device = 0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu")
if "LOCAL_RANK" in os.environ:
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
if options.batch % processes != 0:
    parser.error(f"--batch: expected a multiple of the {processes} processes, got {options.batch}")

# %% The model; all processes begin with the same weights
torch.manual_seed(0)
mixer = aft.models.MixerConfig("aft_local", window=options.window)
config = aft.models.ModelConfig(layers=options.layers, channels=options.channels, mlp_channels=4 * options.channels,
                                context=options.context, mixer=mixer)
model = aft.models.ByteLM(config, device=device)
network = DistributedDataParallel(model) if processes > 1 else model

# %% Training: AdamW, the learning rate up in the first twentieth of the steps and down to 0
optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps + 1, pct_start=0.05)
draws = torch.Generator().manual_seed(rank)
for step in range(1, options.steps + 1):
    begins = torch.randint(len(text) - options.context, (options.batch // processes, 1), generator=draws)
    windows = text[begins + torch.arange(options.context + 1)].long().to(device)       # [batch, context + 1]
    loss = cross_entropy(network(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if rank == 0 and (step % 50 == 0 or step in {1, options.steps}):
        print(f"step {step:5}  loss {loss.item():.4f}", flush=True)

# %% What it writes
if rank == 0:
    print(model.generate(b"ROMEO:", 200).decode(errors="replace"))
    if options.save:
        model.save(options.save)
if distributed.is_initialized():
    distributed.barrier()  # Gloo's threads would keep the last gradients into the end of the interpreter, and abort
    distributed.destroy_process_group()
