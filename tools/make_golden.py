"""Makes the golden files of the tests: the method in plain PyTorch, and its noise in plain numpy.

    pip install torch numpy safetensors
    python tools/make_golden.py

The files under tests/golden/ are committed; run this only when the method itself changes. Nothing here is shared with
the Rust code: models, losses and gradients are torch.nn, torch.optim and autograd, and the noise is an own
Philox4x32-10 with Box-Muller. Everything is computed in float64. Inputs and parameters are first rounded to float32,
as they are stored, so the expected values are the truth that any float32 implementation rounds.

Files, one for each shape in SHAPES with two PyTorch state dicts beside it, and noise.safetensors. Inputs are F32 or U32; expected values are F64, but for
the long ones (gradients, parameters, candidates), which are F32 to keep the files small. Settings are JSON in the file's metadata.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_state
from torch import nn

POSTERIOR, PERTURB, TRAIN_VAE, INIT, SIMULATION = 0, 1, 2, 4, 8
CHOSEN, REJECTED = 0, 1
W2_EPS = 1e-8

SHAPES = {
    "d40": {"dim": 40, "hidden": 32, "latent": 16, "reward_hidden": 48},
    "d33": {"dim": 33, "hidden": 16, "latent": 32, "reward_hidden": 16},
}
PAIRS = 24
# A pair whose two sides are equal: its W2 is 0, where the root has no derivative unless it is stabilised.
EQUAL_PAIR = 5


# Noise -----------------------------------------------------------------------------------------------------------


def philox(counter, key):
    """Philox4x32-10 of uint32 counters [..., 4] under a key of two words."""
    c = [np.asarray(counter)[..., i].astype(np.uint64) for i in range(4)]
    k = [int(key[0]), int(key[1])]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            p0 & low,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=-1).astype(np.uint32)


def words(seed, purpose, side, row, candidate, count):
    """The first `count` words of one address."""
    blocks = -(-count // 4)
    last = (row >> 32 & 0xFFFF) | side << 16 | purpose << 24
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks)
    counter[:, 1:] = [candidate, row & 0xFFFFFFFF, last]
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:count]


def normals(seed, purpose, side, row, candidate, count):
    """Standard normals of one address, rounded to float32.

    The uniform u = (word + 1/2) / 2^32 is itself a float32, and so is the word before it: that is part of the noise's
    definition, since near u = 1 the normal is as small as this rounding. All that follows is float64.
    """
    w = words(seed, purpose, side, row, candidate, -(-count // 4) * 4).reshape(-1, 2, 2)
    word = w[:, :, 0].astype(np.float32).astype(np.float64)
    u = (word * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)
    r = np.sqrt(-2.0 * np.log(u))
    angle = 2.0 * math.pi * (w[:, :, 1].astype(np.float64) / 2.0**32)
    both = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1)
    return both.reshape(-1)[:count].astype(np.float32)


def initial_linear(inputs, outputs, seed, tensor):
    """nn.Linear's initialisation, from the words of one address: weight first, then bias; float32 throughout."""
    w = words(seed, INIT, CHOSEN, tensor, 0, outputs * inputs + outputs)
    unit = (w >> 8).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    values = unit * (np.float32(1.0) / np.sqrt(np.float32(inputs)))
    return values[: outputs * inputs].reshape(outputs, inputs), values[outputs * inputs :]


# Models ----------------------------------------------------------------------------------------------------------


class Vae(nn.Module):
    def __init__(self, dim, hidden, latent):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=-1)


def reward_model(dim, hidden):
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def initialise(layers, seed, first_tensor):
    for i, layer in enumerate(layers):
        weight, bias = initial_linear(layer.in_features, layer.out_features, seed, first_tensor + i)
        layer.weight.data = torch.from_numpy(weight.astype(np.float64))
        layer.bias.data = torch.from_numpy(bias.astype(np.float64))


def fold_input(layer, mean, std):
    """The layer for x where it was made for (x - mean) / std."""
    weight = layer.weight.data / std
    layer.bias.data = layer.bias.data - weight @ mean
    layer.weight.data = weight


def fold_output(layer, mean, std):
    """The layer followed by y * std + mean."""
    layer.weight.data = layer.weight.data * std[:, None]
    layer.bias.data = layer.bias.data * std + mean


def copy_of(model, make):
    other = make().double()
    other.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    return other


def round_parameters(model):
    for p in model.parameters():
        p.data = p.data.float().double()


class Kinks:
    """Watches how close the inputs of every ReLU come to 0, where gradients jump and rounding would decide them."""

    def __init__(self):
        self.nearest = math.inf

    def watch(self, model):
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self.look)

    def check(self):
        assert self.nearest > 3e-6, f"a ReLU input of {self.nearest}: gradients would hang on rounding"

    def look(self, _module, inputs, _output):
        self.nearest = min(self.nearest, inputs[0].detach().abs().min().item())


# Losses ----------------------------------------------------------------------------------------------------------


def vae_loss(vae, chosen, rejected, eps, reduction, divergence, beta, gamma):
    reconstruction, kl, posteriors = 0.0, 0.0, []
    for x, e in ((chosen, eps[CHOSEN]), (rejected, eps[REJECTED])):
        mu, logvar = vae.encode(x)
        x_hat = vae.decoder(mu + torch.exp(logvar / 2) * e)
        error = (x_hat - x) ** 2
        error = error.mean(dim=-1) if reduction == "mean" else error.sum(dim=-1)
        reconstruction = reconstruction + error.mean()
        kl = kl + (0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).sum(dim=-1)).mean()
        posteriors.append((mu, torch.exp(logvar / 2)))
    (mu_a, sigma_a), (mu_b, sigma_b) = posteriors
    squared = ((mu_a - mu_b) ** 2).sum(dim=-1) + ((sigma_a - sigma_b) ** 2).sum(dim=-1)
    distance = torch.sqrt(squared + W2_EPS) if divergence == "w2" else squared
    term = -distance.mean()
    total = reconstruction + beta * kl + gamma * term
    return total, torch.stack([total, reconstruction, kl, term]).detach()


def reward_loss(reward, chosen, rejected):
    return -nn.functional.logsigmoid(reward(chosen) - reward(rejected)).mean()


# Goldens ---------------------------------------------------------------------------------------------------------


def embeddings(shape, seed):
    """Pairs whose dimensions differ in mean and spread, with a few strong directions and a shift between the sides."""
    d = shape["dim"]
    mean = 1.5 * normals(seed, SIMULATION, CHOSEN, 0, 1000, d).astype(np.float64) + 0.7
    std = 0.15 + np.abs(normals(seed, SIMULATION, CHOSEN, 0, 1001, d).astype(np.float64))
    factors = np.stack([normals(seed, SIMULATION, CHOSEN, i, 1002, d) for i in range(6)]).astype(np.float64)
    shift = normals(seed, SIMULATION, CHOSEN, 0, 1003, d).astype(np.float64)
    sides = []
    for side, sign in ((CHOSEN, 0.4), (REJECTED, -0.4)):
        code = np.stack([normals(seed, SIMULATION, side, r, 1, 6) for r in range(PAIRS)]).astype(np.float64)
        rest = np.stack([normals(seed, SIMULATION, side, r, 2, d) for r in range(PAIRS)]).astype(np.float64)
        sides.append((mean + std * (code @ factors * 0.6 + 0.5 * rest + sign * shift)).astype(np.float32))
    sides[1][EQUAL_PAIR] = sides[0][EQUAL_PAIR]
    return [torch.from_numpy(s).double() for s in sides]


def as_numpy(tensor, dtype=np.float64):
    return np.ascontiguousarray(tensor.detach().numpy().astype(dtype))


class File:
    def __init__(self):
        self.tensors = {}
        self.settings = {}

    def put(self, name, tensor, dtype=np.float64):
        assert name not in self.tensors
        array = as_numpy(tensor, dtype) if isinstance(tensor, torch.Tensor) else np.ascontiguousarray(tensor)
        assert np.isfinite(array).all(), name
        self.tensors[name] = array

    def put_state(self, prefix, model, dtype):
        for name, value in model.state_dict().items():
            self.put(f"{prefix}.{name}", value, dtype)

    def put_gradients(self, prefix, model):
        for name, parameter in model.named_parameters():
            self.put(f"{prefix}.{name}", parameter.grad, np.float32)

    def save(self, path):
        # One metadata key: the order of several would differ from run to run.
        save_file(self.tensors, path, metadata={"settings": json.dumps(self.settings, sort_keys=True)})
        print(f"{path}: {path.stat().st_size} bytes, {len(self.tensors)} tensors")


def noise_of(seed, purpose, rows, candidate, latent):
    """Noise of both sides for rows of the data set, [2, rows, latent]."""
    sides = [[normals(seed, purpose, s, int(r), candidate, latent) for r in rows] for s in (CHOSEN, REJECTED)]
    return torch.from_numpy(np.array(sides)).double()


def selection_goldens(out, shape, folded, sides):
    """Candidates and latents of one block of chosen rows; the gap between neighbours in rank must be clear."""
    latent = shape["latent"]
    origin = {"seed": 0xFEDC_BA98_7654_3210, "first_row": (1 << 32) + 77, "rows": 9}
    how = {"sigma2": 0.01, "keep": 5, "oversample": 4}
    out.settings["select"] = {**origin, **how}
    sigma = math.sqrt(float(np.float32(how["sigma2"])))
    drawn = how["keep"] * how["oversample"]
    rows = range(origin["first_row"], origin["first_row"] + origin["rows"])
    mu, logvar = folded.encode(sides[CHOSEN][: origin["rows"]])
    eps = noise_of(origin["seed"], POSTERIOR, rows, 0, latent)[CHOSEN]
    eta = torch.stack([noise_of(origin["seed"], PERTURB, rows, c, latent)[CHOSEN] for c in range(drawn)], dim=1)
    for source in ("sample", "mean"):
        z = mu + torch.exp(logvar / 2) * eps if source == "sample" else mu
        candidates = z[:, None] + sigma * eta
        out.put(f"perturbed.{source}", candidates, np.float32)
        for likelihood in ("posterior", "prior"):
            if likelihood == "posterior":
                scaled = (candidates - mu[:, None]) ** 2 / torch.exp(logvar)[:, None]
                value = -0.5 * (scaled + logvar[:, None]).sum(dim=-1)
            else:
                value = -0.5 * (candidates**2).sum(dim=-1)
            ranked, order = value.sort(dim=-1, descending=True)
            gap = (ranked[:, :-1] - ranked[:, 1:])[:, : how["keep"]].min().item()
            assert gap > 2e-5, f"candidates of nearly equal likelihood: {gap}"
            out.put(f"selected.{source}.{likelihood}", order[:, : how["keep"]], np.uint32)


def vae_goldens(out, make, shape, initial, standardised):
    """Losses, gradients and twenty steps of Adam on the initial VAE."""
    latent = shape["latent"]
    settings = {"beta": {"mean": 1e-3, "sum": 1.0}, "gamma": 0.1, "seed": 0x0000_0001_8000_0003, "lr": 1e-3}
    seed, gamma = settings["seed"], settings["gamma"]
    settings["epoch_of_gradients"] = 3
    order = np.argsort(words(7, SIMULATION, CHOSEN, 0, 9, PAIRS), kind="stable")
    batches = {"8": order[:8], "7": order[17:], "1": order[10:11]}
    for name, rows in batches.items():
        out.put(f"vae.batch.{name}", rows.astype(np.uint32))
    assert EQUAL_PAIR in set(batches["8"]) | set(batches["7"])
    model = copy_of(initial, make)
    kinks = Kinks()
    kinks.watch(model)
    for reduction in ("mean", "sum"):
        for divergence in ("w2", "w2-squared"):
            name = f"{reduction}.{divergence}"
            beta = settings["beta"][reduction]
            for batch, rows in batches.items():
                eps = noise_of(seed, TRAIN_VAE, rows, settings["epoch_of_gradients"], latent)
                model.zero_grad()
                a, b = (s[rows] for s in standardised)
                total, terms = vae_loss(model, a, b, eps, reduction, divergence, beta, gamma)
                total.backward()
                out.put(f"vae.loss.{name}.{batch}", terms)
                if batch == "8" or (batch == "7" and name == "mean.w2"):
                    out.put_gradients(f"vae.gradient.{name}.{batch}", model)
    # Five epochs of batches of 7, 7, 7 and 3 pairs: twenty steps.
    settings["train"] = {"batch": 7, "epochs": 5}
    for reduction, divergence in (("mean", "w2"), ("sum", "w2-squared")):
        model = copy_of(initial, make)
        kinks.watch(model)
        adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
        losses, orders = [], []
        for epoch in range(settings["train"]["epochs"]):
            order = np.argsort(words(8, SIMULATION, CHOSEN, epoch, 9, PAIRS), kind="stable")
            orders.append(order)
            for start in range(0, PAIRS, settings["train"]["batch"]):
                rows = order[start : start + settings["train"]["batch"]]
                eps = noise_of(seed, TRAIN_VAE, rows, epoch, latent)
                a, b = (s[rows] for s in standardised)
                beta = settings["beta"][reduction]
                total, terms = vae_loss(model, a, b, eps, reduction, divergence, beta, gamma)
                adam.zero_grad()
                total.backward()
                adam.step()
                losses.append(terms)
        if reduction == "mean":
            out.put("vae.train.orders", np.array(orders, np.uint32))
        out.put(f"vae.train.{reduction}.{divergence}.losses", torch.stack(losses))
        out.put_state(f"vae.train.{reduction}.{divergence}.final", model, np.float32)
    kinks.check()
    out.settings["vae"] = settings


def reward_goldens(out, shape, initial_reward, make_reward, folded, sides, mean, std):
    """Losses, gradients and twenty steps on originals and synthetic rows, decoded plainly and as residuals."""
    synthetic = 17
    settings = {"lr": 1e-3, "batch": 8, "epochs": 4, "pairs": 39}
    kinks = Kinks()
    latents, owners = [], []
    for side in (CHOSEN, REJECTED):
        rows = words(9, SIMULATION, side, 0, 5, synthetic) % PAIRS
        mu, logvar = folded.encode(sides[side][rows])
        eps = np.stack([normals(9, SIMULATION, side, j, 6, shape["latent"]) for j in range(synthetic)])
        z = mu + 0.5 * torch.exp(logvar / 2) * torch.from_numpy(eps).double()
        latents.append(z.detach().float().double())
        owners.append(rows)
        out.put(f"reward.latents.{side}", latents[side], np.float32)
        out.put(f"reward.latent_rows.{side}", rows.astype(np.uint32))
    draw = words(10, SIMULATION, CHOSEN, 0, 7, 2 * settings["pairs"]).reshape(-1, 2) % (PAIRS + synthetic)
    # All kinds of rows and a pair of two originals that are equal.
    draw[3] = EQUAL_PAIR
    out.put("reward.pairs", draw.astype(np.uint32))
    for mode in ("plain", "residual"):
        rows = []
        for side in (CHOSEN, REJECTED):
            decoded = folded.decoder(latents[side])
            if mode == "residual":
                seeds = sides[side][owners[side]]
                decoded = seeds + decoded - folded.decoder(folded.encode(seeds)[0])
            rows.append(((torch.cat([sides[side], decoded]) - mean) / std).detach())
        model = make_reward().double()
        model.load_state_dict(initial_reward.state_dict())
        kinks.watch(model)
        loss = reward_loss(model, rows[0][draw[:8, 0]], rows[1][draw[:8, 1]])
        loss.backward()
        out.put(f"reward.loss.{mode}", loss.reshape(1))
        out.put_gradients(f"reward.gradient.{mode}", model)
        adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
        losses = []
        for _ in range(settings["epochs"]):
            for start in range(0, settings["pairs"], settings["batch"]):
                pairs = draw[start : start + settings["batch"]]
                loss = reward_loss(model, rows[0][pairs[:, 0]], rows[1][pairs[:, 1]])
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses.append(loss.detach())
        out.put(f"reward.train.{mode}.losses", torch.stack(losses))
        out.put_state(f"reward.train.{mode}.final", model, np.float32)
    kinks.check()
    out.settings["reward"] = settings


def shape_goldens(shape, seed, path):
    out = File()
    dim, hidden, latent = shape["dim"], shape["hidden"], shape["latent"]
    out.settings.update(shape=shape, init_seed=seed)
    sides = embeddings(shape, seed)
    for side in (CHOSEN, REJECTED):
        out.put(("chosen", "rejected")[side], sides[side], np.float32)

    both = torch.cat(sides)
    exact_mean, exact_std = both.mean(dim=0), both.std(dim=0, correction=0)
    out.put("standardizer.mean", exact_mean)
    out.put("standardizer.std", exact_std)
    mean, std = exact_mean.float().double(), exact_std.float().double()
    standardised = [(s - mean) / std for s in sides]

    def make():
        return Vae(dim, hidden, latent)

    def make_reward():
        return reward_model(dim, shape["reward_hidden"])

    initial = make().double()
    initialise([initial.encoder[0], initial.encoder[2], initial.decoder[0], initial.decoder[2]], seed, 0)
    out.put_state("vae.initial", initial, np.float32)
    folded = copy_of(initial, make)
    fold_input(folded.encoder[0], mean, std)
    fold_output(folded.decoder[2], mean, std)
    round_parameters(folded)
    out.put_state("vae.folded", folded, np.float32)

    initial_reward = make_reward().double()
    initialise([initial_reward[0], initial_reward[2]], seed, 16)
    out.put_state("reward.initial", initial_reward, np.float32)
    folded_reward = make_reward().double()
    folded_reward.load_state_dict(initial_reward.state_dict())
    fold_input(folded_reward[0], mean, std)
    round_parameters(folded_reward)
    out.put_state("reward.folded", folded_reward, np.float32)
    # The checkpoints that a PyTorch user would write, without any of our metadata.
    for kind, model in (("vae", folded), ("reward", folded_reward)):
        state = {k: v.float().contiguous() for k, v in model.state_dict().items()}
        save_state(state, path.with_name(f"{path.stem}_torch_{kind}.safetensors"))

    for side in (CHOSEN, REJECTED):
        mu, logvar = folded.encode(sides[side])
        out.put(f"encode.mu.{side}", mu)
        out.put(f"encode.logvar.{side}", logvar)
    out.put("score", folded_reward(torch.cat(sides)).reshape(-1))

    # Latents of chosen rows, in no order, some rows twice and some never.
    owners = words(11, SIMULATION, CHOSEN, 0, 8, 31) % PAIRS
    z = np.stack([normals(11, SIMULATION, CHOSEN, j, 9, latent) for j in range(31)])
    z = torch.from_numpy(z).double()
    out.put("decode.z", z, np.float32)
    out.put("decode.rows", owners.astype(np.uint32))
    plain = folded.decoder(z)
    out.put("decode.plain", plain)
    seeds = sides[CHOSEN][owners]
    out.put("decode.residual", seeds + plain - folded.decoder(folded.encode(seeds)[0]))

    selection_goldens(out, shape, folded, sides)
    vae_goldens(out, make, shape, initial, standardised)
    reward_goldens(out, shape, initial_reward, make_reward, folded, sides, mean, std)
    out.save(path)


def noise_goldens(path):
    out = File()
    counts = 70
    addresses = [
        # seed, purpose, side, row, candidate
        (0, 0, 0, 0, 0),
        (1, 1, 1, 2, 3),
        (0x0123_4567_89AB_CDEF, 1, 1, 12_345, 7),
        (0xFFFF_FFFF_FFFF_FFFF, 2, 0, (1 << 48) - 1, 0xFFFF_FFFF),
        (1 << 63, 8, 1, 1 << 32, 1 << 31),
        (42, 5, 0, (1 << 40) + 9, 100),
    ]
    out.settings["addresses"] = [dict(zip(("seed", "purpose", "side", "row", "candidate"), a)) for a in addresses]
    out.put("words", np.stack([words(*a, counts) for a in addresses]))
    out.put("normals", np.stack([normals(*a, counts) for a in addresses]))
    out.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder of the golden files")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    # The known answer of Random123 for counter and key of all ones.
    ones = np.full(4, 0xFFFFFFFF, np.uint32)
    assert list(philox(ones, (0xFFFFFFFF,) * 2)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    noise_goldens(folder / "noise.safetensors")
    for seed, (name, shape) in enumerate(SHAPES.items(), start=2026):
        shape_goldens(shape, seed, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
