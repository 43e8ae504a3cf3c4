"""Models as ``torch.nn.Module``, and back."""

# Torch is not seen by the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ._models import RewardModel, Vae


class LinearReward(nn.Module):
    """A reward model of linear heads, whose mean is the reward; ``score`` is the layer d -> heads."""

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        self.score = nn.Linear(dim, heads)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """The reward of each head, [..., heads]."""
        rewards: torch.Tensor = self.score(x)
        return rewards

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rewards [..., 1] of embeddings [..., d]."""
        return self.heads(x).mean(-1, keepdim=True)

    def spread(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards of embeddings [..., d] and their standard deviations over the heads, [...] each."""
        return _spread(self.heads(x))


class RewardEnsemble(nn.Module):
    """Several MLPs d -> hidden -> 1 side by side, whose mean is the reward.

    The layers are called "0", all hidden units [heads * hidden, d], and "2", the last layer of each head
    [heads, hidden]: the names of ``torch.nn.Sequential(Linear, ReLU, Linear)``, and that module itself for
    one head.
    """

    def __init__(self, dim: int, hidden: int = 256, heads: int = 8) -> None:
        super().__init__()
        self.add_module("0", nn.Linear(dim, heads * hidden))
        # Holds the parameters [heads, hidden] and [heads]; each row is applied to the hidden units of its own
        # head.
        self.add_module("2", nn.Linear(hidden, heads))

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """The reward of each head, [..., heads]."""
        first, last = self.get_submodule("0"), self.get_submodule("2")
        hidden = torch.relu(first(x)).unflatten(-1, last.weight.shape)
        return (hidden * last.weight).sum(-1) + last.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rewards [..., 1] of embeddings [..., d]."""
        return self.heads(x).mean(-1, keepdim=True)

    def spread(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards of embeddings [..., d] and their standard deviations over the heads, [...] each."""
        return _spread(self.heads(x))


def _spread(rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rewards.mean(-1), rewards.std(-1, correction=0)


class VaeOutput(NamedTuple):
    """What :class:`VaeModule` gives."""

    #: Embeddings [..., d].
    reconstruction: torch.Tensor
    #: Means of the posteriors, [..., latent].
    mu: torch.Tensor
    #: Logarithms of their variances, [..., latent].
    logvar: torch.Tensor


class VaeModule(nn.Module):
    """The VAE: ``encoder`` is Linear(d, hidden), ReLU, Linear(hidden, 2 latent), ``decoder`` the way back."""

    def __init__(self, dim: int, hidden: int = 64, latent: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log-variances of the posteriors of embeddings [..., d]; [..., latent] each."""
        mu, logvar = self.encoder(x).chunk(2, -1)
        return mu, logvar

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., d] of latents [..., latent]."""
        made: torch.Tensor = self.decoder(z)
        return made

    def sample(
        self, mu: torch.Tensor, logvar: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Samples of posteriors: mu + exp(logvar / 2) times standard normal noise."""
        noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
        return mu + (logvar / 2).exp() * noise

    def forward(self, x: torch.Tensor) -> VaeOutput:
        """Embeddings [..., d] decoded, in training from posterior samples, else from the means."""
        mu, logvar = self.encode(x)
        return VaeOutput(self.decode(self.sample(mu, logvar) if self.training else mu), mu, logvar)


def to_module(model: RewardModel | Vae) -> nn.Module:
    """A model as a module for raw embeddings, float32, in evaluation mode, with its checkpoint's state dict.

    Returns:
        For one MLP head ``torch.nn.Sequential(Linear, ReLU, Linear)``, for several a :class:`RewardEnsemble`,
        for linear heads a :class:`LinearReward`, all of which give rewards [..., 1]; for a VAE a
        :class:`VaeModule`.
    """
    # Made without memory or random numbers; the parameters are those of the state dict.
    with torch.device("meta"):
        if isinstance(model, Vae):
            module: nn.Module = VaeModule(model.dim, model.hidden, model.latent)
        elif not isinstance(model, RewardModel):
            raise TypeError(f"model: expected a RewardModel or a Vae, found {type(model).__name__}")
        elif model.head == "linear":
            module = LinearReward(model.dim, model.heads)
        elif model.heads > 1:
            module = RewardEnsemble(model.dim, model.hidden, model.heads)
        else:
            module = nn.Sequential(nn.Linear(model.dim, model.hidden), nn.ReLU(), nn.Linear(model.hidden, 1))
    state = {name: torch.from_numpy(value.copy()) for name, value in model.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(True).eval()


def from_module(module: nn.Module, metadata: Mapping[str, str] | None = None) -> RewardModel | Vae:
    """A model of a module: of what :func:`to_module` makes, or of plain modules of the same layers.

    Taken as reward models are ``Linear(d, 1)`` and ``Sequential(Linear(d, hidden), ReLU, Linear(hidden,
    1))``; as a VAE, a module whose ``encoder`` and ``decoder`` are such Sequentials, d -> hidden -> 2 latent
    and latent -> hidden -> d. Dropout and Identity are left out, a missing bias is zeros, hidden layers are
    widened by units without effect to a multiple of 16, and parameters of any floating point type on any
    device become float32. Wrappers of ``torch.compile`` and ``DistributedDataParallel`` are looked through.

    Args:
        module: The module; it takes raw embeddings, not standardised ones.
        metadata: What the model's file is to say of it.

    Raises:
        TypeError: Not a module, or one of other layers.
        ValueError: Layers that do not fit each other.
    """
    while isinstance(getattr(module, "_orig_mod", getattr(module, "module", None)), nn.Module):
        module = getattr(module, "_orig_mod", None) or module.module
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, found {type(module).__name__}")
    if isinstance(module, RewardEnsemble):
        first, last = module.get_submodule("0"), module.get_submodule("2")
        return RewardModel.from_state_dict({**_named(first, "0"), **_named(last, "2")}, metadata)
    if isinstance(module, LinearReward):
        return RewardModel.from_state_dict(_named(module.score, "score"), metadata)
    children = dict(module.named_children())
    if {"encoder", "decoder"} <= set(children):
        return _vae(children["encoder"], children["decoder"], metadata)
    layers = _layers(module, "module")
    if layers[-1].out_features != 1:
        raise ValueError(f"module: expected one output, the reward, found {layers[-1].out_features}")
    if len(layers) == 1:
        return RewardModel.from_state_dict(_named(layers[0], "score"), metadata)
    return RewardModel.from_state_dict(_perceptron(layers, ("0", "2"), _granule(layers)), metadata)


def _vae(encoder: nn.Module, decoder: nn.Module, metadata: Mapping[str, str] | None) -> Vae:
    down, up = _layers(encoder, "encoder"), _layers(decoder, "decoder")
    for name, layers in (("encoder", down), ("decoder", up)):
        if len(layers) != 2:
            raise TypeError(f"{name}: expected Linear, ReLU, Linear, found a single Linear")
    if down[1].out_features != 2 * up[0].in_features:
        raise ValueError(
            f"encoder: expected {2 * up[0].in_features} outputs, mu and logvar of the decoder's "
            f"{up[0].in_features} latents, found {down[1].out_features}"
        )
    if down[0].in_features != up[1].out_features:
        raise ValueError(
            f"decoder: expected {down[0].in_features} outputs as the encoder has inputs, found "
            f"{up[1].out_features}"
        )
    hidden = max(_granule(down), _granule(up))
    state = _perceptron(down, ("encoder.0", "encoder.2"), hidden) | _perceptron(
        up, ("decoder.0", "decoder.2"), hidden
    )
    return Vae.from_state_dict(state, metadata)


def _layers(module: nn.Module, what: str) -> list[nn.Linear]:
    """The one Linear of a module, or the two with a ReLU between them."""
    modules = list(module) if isinstance(module, nn.Sequential) else [module]
    kept = [layer for layer in modules if not isinstance(layer, nn.Dropout | nn.Identity)]
    linear = [layer for layer in kept if isinstance(layer, nn.Linear)]
    kinds = [
        "linear" if isinstance(layer, nn.Linear) else "relu" if isinstance(layer, nn.ReLU) else ""
        for layer in kept
    ]
    if kinds not in (["linear"], ["linear", "relu", "linear"]):
        found = ", ".join(type(layer).__name__ for layer in modules) or "no layer"
        raise TypeError(f"{what}: expected Linear, or a Sequential of Linear, ReLU, Linear; found {found}")
    if linear[0].out_features != linear[-1].in_features and len(linear) == 2:
        raise ValueError(
            f"{what}: expected a last layer of {linear[0].out_features} inputs as the first has outputs, "
            f"found {linear[1].in_features}"
        )
    return linear


def _granule(layers: Sequence[nn.Linear]) -> int:
    """The width that a hidden layer is widened to."""
    return -(-int(layers[0].out_features) // 16) * 16


def _perceptron(layers: Sequence[nn.Linear], names: tuple[str, str], hidden: int) -> dict[str, torch.Tensor]:
    """The parameters of Linear, ReLU, Linear; added hidden units are 0 and have no effect."""
    state = _named(layers[0], names[0]) | _named(layers[1], names[1])
    added = hidden - layers[0].out_features
    pad = nn.functional.pad
    state[f"{names[0]}.weight"] = pad(state[f"{names[0]}.weight"], (0, 0, 0, added))
    state[f"{names[0]}.bias"] = pad(state[f"{names[0]}.bias"], (0, added))
    state[f"{names[1]}.weight"] = pad(state[f"{names[1]}.weight"], (0, added))
    return state


def _named(layer: Any, name: str) -> dict[str, torch.Tensor]:
    """Weight and bias of a Linear as float32 on the CPU."""
    if layer.weight.is_meta:
        raise ValueError(f"module: expected parameters with values, found {name}.weight on the meta device")
    weight = layer.weight.detach().to("cpu", torch.float32)
    bias = (
        weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().to("cpu", torch.float32)
    )
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def bradley_terry_loss(
    chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """The Bradley-Terry loss -log sigmoid(r(chosen) - r(rejected)) of pairs.

    Args:
        chosen_rewards: Rewards of the preferred responses, of any shape.
        rejected_rewards: Those of the other responses, of the same shape.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: Shapes that differ (they are not broadcast), or another reduction.
    """
    if chosen_rewards.shape != rejected_rewards.shape:
        raise ValueError(
            f"rejected_rewards: expected the shape of chosen_rewards, {list(chosen_rewards.shape)}, found "
            f"{list(rejected_rewards.shape)}"
        )
    reductions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "mean": torch.mean,
        "sum": torch.sum,
        "none": torch.clone,
    }
    if reduction not in reductions:
        raise ValueError(f"reduction: expected one of {', '.join(reductions)}, found {reduction!r}")
    return reductions[reduction](-nn.functional.logsigmoid(chosen_rewards - rejected_rewards))
