"""Stand-ins for the code of two peers: trees of modules with the entry points that benchmarks/peers_*.py call.

They learn the mean of the checkpoints, and give it back with a little noise. So networks that come out show that the
right numbers went in and came back in their places.
"""

from __future__ import annotations

import json
from pathlib import Path

_DATA = """
import os
import torch
class BaseDataset:
    def __init__(self):
        names = sorted(os.listdir(self.data_path))
        self.networks = [torch.load(os.path.join(self.data_path, name), weights_only=True) for name in names]
        self.real_length = len(names)
    def __getitem__(self, row):
        return torch.cat([each.flatten() for each in self.networks[row].values()]), row
    def postprocess(self, row):
        named, start = {}, 0
        for name, like in self.networks[0].items():
            named[name] = row.flatten()[start : start + like.numel()].view(like.shape)
            start += like.numel()
        return named
"""
_MODEL = """
import torch
from torch import nn
class Mean(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.batches = 0
    def learn(self, row):
        self.mean.data.add_((row.mean(dim=0) - self.mean.data) / (self.batches + 1))
        self.batches += 1
    def decode(self, latent):
        return self.mean[None] + 1e-4 * latent.mean()
class Sampler(nn.Module):
    T = 1000
class Latents(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.diffusion_sampler = Sampler()
    def forward(self, x, sample):
        assert sample and self.diffusion_sampler.T in (20, 1000)
        return x
"""
_SCRIPT = """
import torch
from dataset import BaseDataset
from model import Latents, Mean
config = {"vae_steps": VAE, "total_steps": 6, "batch_size": 50, "model_config": {"model_dim": 3, "T": 1000}}
train_set = BaseDataset()
vae, model = Mean(len(train_set[0][0])), Latents()
vae_optimizer, optimizer = torch.optim.SGD(vae.parameters(), 0.0), torch.optim.SGD(model.parameters(), 0.0)
vae_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(vae_optimizer, VAE)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
train_loader = None  # ours takes its place
def generate(**options):
    raise AssertionError("no network is wanted while it trains")
def train_vae():
    for row, _ in train_loader:
        assert row.shape == (50, len(vae.mean))
        vae.learn(row)
    assert vae.batches <= vae_scheduler.T_max + 1
def train():
    generate(save_path=config["checkpoint_save_path"])
    assert len(list(train_loader)) == scheduler.T_max
"""
_FLOW = """
import torch
from torch import nn
from utils import Bunch
class WeightSpaceFlowModel(nn.Module):
    def __init__(self, input_dim, hidden_dim, time_embed_dim, dropout):
        super().__init__()
        self.input_dim, self.layer = input_dim, nn.Linear(input_dim, input_dim)
class FlowMatching:
    def __init__(self, sourceloader, targetloader, model, mode, t_dist, device):
        assert mode == "velocity" and Bunch(t=1).t == 1
        self.steps = 0
    def train(self, n_iters, optimizer, scheduler, sigma, patience, log_freq):
        for _ in range(n_iters):
            optimizer.step()
            scheduler.step()
    def map(self, noise, n_steps, method):
        assert (n_steps, method) == (100, "rk4")
        return 0.01 * noise
"""
FLOW_STEPS = 400


def write_pdiff(folder: Path, *, vae_steps: int = 40) -> Path:
    """The tree of p-diff's stand-in, in `folder`."""
    for name, text in {
        "dataset/__init__.py": _DATA,
        "model/__init__.py": _MODEL,
        "workspace/main/cifar100_resnet18.py": _SCRIPT.replace("VAE", str(vae_steps)),
        "workspace/full/cifar10_mlp.py": _SCRIPT.replace("VAE", str(vae_steps)),
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def write_flow(folder: Path) -> Path:
    """The tree of DeepWeightFlow's stand-in, in `folder`."""
    settings = {
        "batch_size": 8,
        "flow_hidden_dims": [16],
        "time_embed_dim": 4,
        "dropout": 0.1,
        "n_iters": FLOW_STEPS,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "sigma": 0.001,
        "patience": 100,
        "source_std": 0.01,
        "integration_steps": 100,
        "integration_method": "rk4",
        "pca_components": 99,
    }
    modules = folder / "flowmatching"
    modules.mkdir(parents=True)
    (modules / "flow_matching.py").write_text(_FLOW)
    (modules / "constants.json").write_text(json.dumps({"t_dist": "uniform", "models": {"mlp_mnist": settings}}))
    return folder
