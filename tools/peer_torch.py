"""LENS in PyTorch, from first to last, and its single operations: what tools/bench_peers.py compares lensmith with.

Nothing of lensmith is used here but, where the same initial weights are wanted, the plain definition of its noise in
make_golden.py. Every operation comes in several variants (eager, torch.compile and, on a GPU, its CUDA graphs; F32,
BF16), and the best one counts.
"""
import os
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

BATCH = 128
KEEP, OVERSAMPLE = 4, 4
SIGMA = 0.1
W2_EPS = 1e-8


def modes(device):
    """Ways to run a function: words for a variant's name, and `mode` of torch.compile, or None for eager."""
    ways = [("", None), (", compiled", "default")]
    # With CUDA graphs, which cost the host no time for each launch.
    return ways + ([(", reduce-overhead", "reduce-overhead")] if torch.device(device).type == "cuda" else [])


def compiled(function, mode):
    """The function as `mode` of torch.compile makes it; None leaves it as it is."""
    if mode is None:
        return function
    made = torch.compile(function, dynamic=False, mode=mode)
    if mode != "reduce-overhead":
        return made

    def step(*arguments):
        # The result of the last call was copied, so that this call may overwrite it.
        torch.compiler.cudagraph_mark_step_begin()
        return made(*arguments)

    return step


class Vae(nn.Module):
    def __init__(self, dim, hidden, latent):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def reward_model(dim, hidden):
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def vae_loss(vae, x, eps, beta=1e-2, gamma=0.1):
    """Loss of pairs stacked as [chosen; rejected], and reconstruction, KL and divergence."""
    mu, logvar = vae.encoder(x).chunk(2, dim=-1)
    decoded = vae.decoder(mu + torch.exp(logvar / 2) * eps)
    pairs = x.shape[0] / 2
    reconstruction = ((decoded - x) ** 2).mean(dim=-1).sum() / pairs
    kl = 0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).sum() / pairs
    (mu_a, mu_b), (sigma_a, sigma_b) = mu.chunk(2), torch.exp(logvar / 2).chunk(2)
    squared = ((mu_a - mu_b) ** 2).sum(dim=-1) + ((sigma_a - sigma_b) ** 2).sum(dim=-1)
    divergence = -torch.sqrt(squared + W2_EPS).mean()
    return reconstruction + beta * kl + gamma * divergence


def reward_loss(reward, x):
    """Bradley-Terry loss of pairs stacked as [chosen; rejected]."""
    a, b = reward(x).chunk(2)
    return -F.logsigmoid(a - b).mean()


class Training:
    """One way to train: how the loss is compiled, and whether products are in BF16."""

    def __init__(self, device, mode=None, bf16=False):
        self.device, self.bf16 = device, bf16
        self.vae_loss, self.reward_loss = compiled(vae_loss, mode), compiled(reward_loss, mode)

    def step(self, loss, optimiser):
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        return value.detach()

    @staticmethod
    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def vae_epoch(self, vae, optimiser, chosen, rejected, latent):
        n = chosen.shape[0]
        order = torch.randperm(n, device=chosen.device)
        total = torch.zeros((), device=chosen.device)
        for start in range(0, n, BATCH):
            rows = order[start : start + BATCH]
            x = torch.cat([chosen[rows], rejected[rows]])
            eps = torch.randn(x.shape[0], latent, device=x.device)
            total += self.step(lambda: self.vae_loss(vae, x, eps), optimiser) * len(rows)
        return (total / n).item()

    def reward_epoch(self, reward, optimiser, chosen, rejected, pairs):
        order = torch.randperm(len(pairs), device=chosen.device)
        total = torch.zeros((), device=chosen.device)
        for start in range(0, len(pairs), BATCH):
            rows = pairs[order[start : start + BATCH]]
            x = torch.cat([chosen[rows[:, 0]], rejected[rows[:, 1]]])
            total += self.step(lambda: self.reward_loss(reward, x), optimiser) * len(rows)
        return (total / len(pairs)).item()


def initial_models(dim, hidden, latent, reward_hidden, seed):
    """Both models with lensmith's initial weights, so that losses can be compared."""
    from make_golden import initialise

    vae, reward = Vae(dim, hidden, latent), reward_model(dim, reward_hidden)
    initialise([vae.encoder[0], vae.encoder[2], vae.decoder[0], vae.decoder[2]], seed, 0)
    initialise([reward[0], reward[2]], seed, 16)
    return vae.float(), reward.float()


@torch.no_grad()
def synthesise(vae, x, per_side):
    """Samples of one side: `per_side` latents of highest likelihood for each row, decoded, [rows * per_side, d]."""
    mu, logvar = vae.encoder(x).chunk(2, dim=-1)
    sigma = torch.exp(logvar / 2)
    z = mu + sigma * torch.randn_like(mu)
    drawn = z[:, None] + SIGMA * torch.randn(len(x), per_side * OVERSAMPLE, z.shape[1], device=x.device)
    likelihood = -0.5 * (((drawn - mu[:, None]) / sigma[:, None]) ** 2 + logvar[:, None]).sum(dim=-1)
    best = likelihood.topk(per_side, dim=1).indices
    kept = torch.gather(drawn, 1, best[:, :, None].expand(-1, -1, z.shape[1]))
    # Noise is drawn in F32, and latents are converted to the decoder's type.
    return vae.decoder(kept.reshape(-1, z.shape[1]).to(z.dtype))


def whole_run(how, chosen, rejected, models, fold=8, vae_epochs=100, reward_epochs=20):
    """The whole method on raw pairs [n, d]: gives seconds and losses."""
    vae, reward = models
    latent = vae.decoder[0].in_features
    sync(chosen.device)
    start = time.perf_counter()
    both = torch.cat([chosen, rejected]).float()
    mean, std = both.mean(dim=0), both.std(dim=0, correction=0).clamp_min(1e-12)
    a, b = ((side.float() - mean) / std for side in (chosen, rejected))
    optimiser = how.adam(vae)
    for _ in range(vae_epochs):
        vae_last = how.vae_epoch(vae, optimiser, a, b, latent)
    vae_seconds = time.perf_counter() - start

    # Every chosen sample, original included, may meet every rejected one: (k + 1)^2 pairs a seed.
    n, per_side = len(a), int(np.ceil(np.sqrt(fold))) - 1
    a, b = (torch.cat([side, synthesise(vae, side, per_side)]) for side in (a, b))
    seed = torch.arange(n, device=a.device)[:, None]
    drawn = 1 + torch.rand(n, (per_side + 1) ** 2 - 1, device=a.device).argsort(dim=1)[:, : fold - 1]
    row = lambda rank: torch.where(rank == 0, seed, n + seed * per_side + rank - 1)  # noqa: E731
    made = torch.stack([row(drawn // (per_side + 1)), row(drawn % (per_side + 1))], dim=-1)
    pairs = torch.cat([seed.expand(-1, 2), made.reshape(-1, 2)])

    optimiser = how.adam(reward)
    losses = [how.reward_epoch(reward, optimiser, a, b, pairs) for _ in range(reward_epochs)]
    sync(a.device)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "vae_seconds": vae_seconds,
        "vae_loss": vae_last,
        "first_reward_loss": losses[0],
        "reward_loss": losses[-1],
    }


def sync(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def simulated_pairs(n, dim, seed):
    """Pairs with a few strong directions and noisy preferences, as BF16."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    factors, taste = normal(64, dim) / 8, normal(64) / 8
    codes = normal(2, n, 64)
    score = codes @ taste + 0.3 * normal(2, n)
    swap = score[0] < score[1]
    sides = codes @ factors + 1.5 * normal(2, n, dim)
    sides = (sides * (0.1 * torch.exp(0.3 * normal(dim))) + 0.1 * normal(dim)).to(torch.bfloat16)
    chosen = torch.where(swap[:, None], sides[1], sides[0])
    rejected = torch.where(swap[:, None], sides[0], sides[1])
    return chosen.contiguous(), rejected.contiguous()


class Inference:
    """Single operations over `rows` random rows, in chunks, into memory that was allocated before.

    Each of `variants(operation)` is (name, batch sizes, make): make(batch) gives a function that does all rows once.
    """

    def __init__(self, device, rows, dim, hidden=64, latent=16, reward_hidden=256):
        self.device, self.rows, self.dim, self.latent = device, rows, dim, latent
        torch.manual_seed(1)
        self.vae = Vae(dim, hidden, latent).to(device).eval()
        self.reward = reward_model(dim, reward_hidden).to(device).eval()
        self.vae_bf16 = Vae(dim, hidden, latent).to(device, torch.bfloat16).eval()
        self.vae_bf16.load_state_dict(self.vae.state_dict())
        self.reward_bf16 = reward_model(dim, reward_hidden).to(device, torch.bfloat16).eval()
        self.reward_bf16.load_state_dict(self.reward.state_dict())
        for model in (self.vae, self.reward, self.vae_bf16, self.reward_bf16):
            model.requires_grad_(False)

    def unit(self, operation):
        """What is counted, and how many of it a call does."""
        return {
            "decode": ("embeddings", self.rows),
            "encode": ("embeddings", self.rows),
            "score": ("embeddings", self.rows),
            "folded": ("latents", KEEP * self.rows),
            "decode-score": ("latents", KEEP * self.rows),
        }[operation]

    def models(self, bf16):
        return (self.vae_bf16, self.reward_bf16) if bf16 else (self.vae, self.reward)

    def stored(self):
        return torch.randn(self.rows, self.dim, device=self.device).to(torch.bfloat16)

    def variants(self, operation):
        batches = self.batches()
        # Each batch size is compiled by itself.
        few = batches[1:] if self.device == "cpu" else batches[-1:]
        make = getattr(self, operation.replace("-", "_"))
        for bf16 in (False, True):
            name = "BF16" if bf16 else "F32"
            for words, mode in modes(self.device):
                sizes = batches if mode is None else few or batches
                yield f"PyTorch {name}{words}", sizes, lambda batch, bf16=bf16, mode=mode: make(batch, bf16, mode)

    def batches(self):
        batches = [256, 1024, 4096] if self.device == "cpu" else [16384, 65536]
        return [b for b in batches if b <= self.rows] or [self.rows]

    def floors(self, operation):
        """Lower bounds of the operation's time, as variants: on a GPU, the product of the score by cuBLAS."""
        if operation == "score" and self.device != "cpu":
            for bf16 in (False, True):
                name = f"cuBLAS {'BF16' if bf16 else 'F32'}, product of the first layer alone"
                yield name, self.batches(), lambda batch, bf16=bf16: self.first_product(batch, bf16)

    def first_product(self, batch, bf16):
        stored = self.stored() if bf16 else self.stored().float()
        weight = self.models(bf16)[1][0].weight.t()
        out = torch.zeros(batch, weight.shape[1], device=self.device, dtype=stored.dtype)
        return self.chunks(lambda i, j: torch.matmul(stored[i:j], weight, out=out[: j - i]), batch, self.rows)

    def chunks(self, work, batch, count):
        """A function over all chunks; `work` gets the bounds of one."""

        def all_of_it():
            with torch.no_grad():
                for start in range(0, count, batch):
                    work(start, min(start + batch, count))
            sync(self.device)

        return all_of_it

    def ready(self, function, mode):
        """The function compiled, on a CPU with constant weights folded and packed as inference allows."""
        if mode is not None:
            torch._dynamo.reset()
            torch._inductor.config.freezing = self.device == "cpu"
        return compiled(function, mode)

    def decode(self, batch, bf16, mode):
        decoder = self.models(bf16)[0].decoder
        z = torch.randn(self.rows, self.latent, device=self.device).to(torch.bfloat16 if bf16 else torch.float32)
        out = torch.zeros(self.rows, self.dim, device=self.device, dtype=torch.bfloat16)
        first, last = decoder[0], decoder[2]
        turned = last.weight.t()

        if mode == "reduce-overhead":
            # torch.compile makes no CUDA graph of a function that writes to its inputs.
            made = self.ready(lambda z: decoder(z), mode)
            return self.chunks(lambda i, j: out[i:j].copy_(made(z[i:j])), batch, self.rows)

        def decoded(z, out):
            if bf16 and mode is None:
                # Of all spellings, this one writes to `out` without a copy.
                torch.addmm(last.bias, F.relu(first(z)), turned, out=out)
            else:
                out.copy_(decoder(z))

        decoded = self.ready(decoded, mode)
        return self.chunks(lambda i, j: decoded(z[i:j], out[i:j]), batch, self.rows)

    def encode(self, batch, bf16, mode):
        encoder = self.models(bf16)[0].encoder
        stored = self.stored()
        out = torch.zeros(self.rows, 2 * self.latent, device=self.device)
        encoded = self.ready((lambda e: encoder(e)) if bf16 else (lambda e: encoder(e.float())), mode)

        def work(i, j):
            out[i:j] = encoded(stored[i:j])

        return self.chunks(work, batch, self.rows)

    def score(self, batch, bf16, mode):
        reward = self.models(bf16)[1]
        stored = self.stored()
        out = torch.zeros(self.rows, 1, device=self.device)
        scored = self.ready((lambda e: reward(e)) if bf16 else (lambda e: reward(e.float())), mode)

        def work(i, j):
            out[i:j] = scored(stored[i:j])

        return self.chunks(work, batch, self.rows)

    def latents(self):
        """Means and deviations of the rows' posteriors, each for as many latents as are kept of a row."""
        mu = torch.randn(self.rows, self.latent, device=self.device)
        return mu, 0.5 + torch.rand(self.rows, self.latent, device=self.device)

    def perturbed(self, dtype):
        """Draws the latents of some rows: a posterior sample of each row, and what is kept around it."""
        mu, sigma = self.latents()

        def draw(i, j):
            z = mu[i:j] + sigma[i:j] * torch.randn(j - i, self.latent, device=self.device)
            eta = torch.randn(j - i, KEEP, self.latent, device=self.device)
            return (z[:, None] + SIGMA * eta).reshape(-1, self.latent).to(dtype)

        return draw

    def decode_score(self, batch, bf16, mode):
        vae, reward = self.models(bf16)
        draw = self.perturbed(torch.bfloat16 if bf16 else torch.float32)
        out = torch.zeros(KEEP * self.rows, 1, device=self.device)
        scored = self.ready(lambda z: reward(vae.decoder(z)), mode)
        rows = max(batch // KEEP, 1)

        def work(i, j):
            out[KEEP * i : KEEP * j] = scored(draw(i, j))

        return self.chunks(work, rows, self.rows)

    def folded(self, batch, bf16, mode):
        vae, reward = self.models(False)
        dtype = torch.bfloat16 if bf16 else torch.float32
        first, last = vae.decoder[0], vae.decoder[2]
        weight = (reward[0].weight @ last.weight).to(dtype)
        bias = (reward[0].weight @ last.bias + reward[0].bias).to(dtype)
        w0, b0, w2, b2 = (t.to(dtype) for t in (first.weight, first.bias, reward[2].weight, reward[2].bias))
        draw = self.perturbed(dtype)
        out = torch.zeros(KEEP * self.rows, 1, device=self.device)

        def fold(z):
            return F.linear(F.relu(F.linear(F.relu(F.linear(z, w0, b0)), weight, bias)), w2, b2)

        scored = self.ready(fold, mode)
        rows = max(batch // KEEP, 1)

        def work(i, j):
            out[KEEP * i : KEEP * j] = scored(draw(i, j))

        return self.chunks(work, rows, self.rows)


class Synthesis:
    """Synthetic pairs of `seeds` rows that end in the host's memory as BF16, or in a file that is synced."""

    FOLD, CHUNK = 8, 512

    def __init__(self, device, seeds, dim, path=None):
        self.device, self.seeds, self.path = device, seeds, path
        self.pairs = seeds * self.FOLD
        torch.manual_seed(1)
        self.vae = Vae(dim, 64, 16).to(device).eval().requires_grad_(False)
        self.vae_bf16 = Vae(dim, 64, 16).to(device, torch.bfloat16).eval().requires_grad_(False)
        self.vae_bf16.load_state_dict(self.vae.state_dict())
        self.sides = [torch.randn(seeds, dim, device=device).to(torch.bfloat16) for _ in range(2)]
        # Copies from a GPU to pinned memory reach the link's rate.
        pinned = torch.device(device).type == "cuda"
        shape = (2, self.CHUNK * self.FOLD, dim)
        self.host = torch.zeros(shape, dtype=torch.bfloat16, pin_memory=pinned)

    @torch.no_grad()
    def chunk(self, first, bf16):
        """Makes the pairs of CHUNK seeds, [pairs, d] a side: the original, and combinations of its samples."""
        vae = self.vae_bf16 if bf16 else self.vae
        dtype = torch.bfloat16 if bf16 else torch.float32
        per_side = int(np.ceil(np.sqrt(self.FOLD))) - 1
        rows = self.sides[0][first : first + self.CHUNK]
        n = len(rows)
        drawn = torch.rand(n, (per_side + 1) ** 2 - 1, device=self.device).argsort(dim=1)[:, : self.FOLD - 1] + 1
        seed = torch.arange(n, device=self.device)[:, None]
        for side, rank in enumerate((drawn // (per_side + 1), drawn % (per_side + 1))):
            x = self.sides[side][first : first + self.CHUNK]
            made = synthesise(vae, x.to(dtype), per_side).to(torch.bfloat16)
            picked = torch.where(rank == 0, seed, n + seed * per_side + rank - 1)
            index = torch.cat([seed, picked], dim=1).reshape(-1)
            self.host[side, : n * self.FOLD].copy_(torch.cat([x, made])[index], non_blocking=True)
        sync(self.device)
        return n * self.FOLD

    def work(self, bf16):
        """A function that makes all pairs once."""

        def all_of_it():
            file = open(self.path, "wb") if self.path else None
            for first in range(0, self.seeds, self.CHUNK):
                pairs = self.chunk(first, bf16)
                for side in self.host if file else ():
                    file.write(memoryview(side[:pairs].view(torch.int16).numpy()))
            if file:
                file.flush()
                os.fsync(file.fileno())
                file.close()

        return all_of_it


def normals(count=1 << 18):
    """Standard normals on one core: name and a function that fills `count` of them."""
    tensor, array = torch.empty(count), np.empty(count, np.float32)
    yield "PyTorch normal_", lambda: tensor.normal_()
    for bits in (np.random.SFC64, np.random.PCG64, np.random.Philox):
        generator = np.random.Generator(bits(1))
        yield f"numpy {bits.__name__}", lambda g=generator: g.standard_normal(dtype=np.float32, out=array)
