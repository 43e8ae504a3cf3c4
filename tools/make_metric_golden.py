"""Makes tests/golden/metrics.json: the metrics of reward models by numpy, scipy, scikit-learn and statsmodels.

    pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 statsmodels==0.15.0
    python tools/make_metric_golden.py

The file is committed; run this only when a metric changes. Nothing here is shared with the Rust code: correlations, ranks,
t tests and incomplete beta functions are scipy's, losses and Brier scores scikit-learn's, quantiles and histograms numpy's,
Holm's correction that of statsmodels. Best-of-N enumerates all subsets, for many candidates with exact fractions; calibration
and the bootstrap are plain loops, the latter over an own Philox4x32-10.
Inputs are rounded, and JSON keeps every digit of an F64.
"""

import argparse
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy import special, stats
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.stats.multitest import multipletests

BOOTSTRAP = 11


# Pairs -----------------------------------------------------------------------------------------------------------


def calibration(margins):
    """Bins of (pairs, mean confidence, accuracy), the last two None for no pairs, and the expected error."""
    members = [[] for _ in range(10)]
    for m in margins:
        p = special.expit(m)
        confidence = max(p, 1.0 - p)
        for b in range(10):
            upper = (11 + b) / 20
            if confidence < upper or b == 9:
                members[b].append((confidence, m > 0))
                break
    bins, error = [], 0.0
    for found in members:
        if found:
            confidence = float(np.mean([c for c, _ in found]))
            accuracy = float(np.mean([right for _, right in found]))
            error += len(found) / len(margins) * abs(accuracy - confidence)
            bins.append([len(found), confidence, accuracy])
        else:
            bins.append([0, None, None])
    return bins, error


def pair_case(margins):
    margins = np.asarray(margins, np.float64)
    p = special.expit(margins)
    loss = float(np.mean(np.logaddexp(0.0, -margins)))
    # scikit-learn wants both classes: every pair once as it is and once the other way round.
    labels = np.r_[np.ones(len(p)), np.zeros(len(p))]
    scores = np.r_[p, special.expit(-margins)]
    brier = float(brier_score_loss(labels, scores))
    # Its loss is from 1 - p, which is cancelled at large margins.
    if np.abs(margins).max() < 10:
        assert math.isclose(loss, log_loss(labels, scores), rel_tol=1e-9)
    bins, error = calibration(margins)
    return {
        "margins": margins.tolist(),
        "accuracy": float(np.mean(margins > 0)),
        "loss": loss,
        "bins": bins,
        "expected_error": error,
        "brier": brier,
        "mean": float(np.mean(margins)),
        "std": float(np.std(margins)),
        "quantiles": np.quantile(margins, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
    }


def pair_cases(rng):
    extreme = rng.normal(0, 3, 60).round(3)
    extreme[:8] = [800, -800, 800, -750.5, 40, -40, 0, 1e-12]
    return [
        pair_case(rng.normal(0.8, 1.5, 300).round(4)),
        pair_case(rng.normal(2, 9, 151).round(2)),
        pair_case(extreme),
        # Ties of all kinds.
        pair_case(rng.integers(-3, 5, 200) / 2.0),
        pair_case(np.zeros(7)),
        pair_case([0.25]),
        pair_case([-3.5, 1.25]),
        pair_case(rng.normal(1e-3, 1e-4, 50).round(8)),
    ]


# Best of N and ranks ---------------------------------------------------------------------------------------------


def best_of_subsets(scores, gold, n):
    """The mean gold score of the candidate with the highest score over all subsets of n candidates."""
    best = [gold[max(subset, key=lambda i: (scores[i], -i))] for subset in itertools.combinations(range(len(gold)), n)]
    return math.fsum(best) / len(best)


def best_exactly(scores, gold, n):
    """The same by exact fractions, where subsets are too many."""
    order = sorted(range(len(gold)), key=lambda i: (scores[i], -i))
    total = math.comb(len(gold), n)
    share = [Fraction(math.comb(i, n - 1), total) for i in range(len(gold))]
    assert sum(share) == 1
    return float(sum(s * Fraction(float(gold[i])) for s, i in zip(share, order)))


def correlation(a, b):
    if np.all(a == a[0]) or np.all(b == b[0]):
        return None
    return float(stats.spearmanr(a, b).statistic)


def prompt_case(rewards, gold, drawn=None):
    """`drawn`: the numbers of candidates whose points are kept; None for all, by enumeration."""
    prompts, m = gold.shape
    best = best_of_subsets if drawn is None else best_exactly
    points = []
    for n in drawn or range(1, m + 1):
        model = np.mean([best(r, g, n) for r, g in zip(rewards, gold)])
        oracle = np.mean([best(g, g, n) for g in gold])
        # Of n uniform values the largest has density n u^(n - 1): the divergence from the uniform density.
        kl = stats.beta(n, 1).expect(lambda u: np.log(n) + (n - 1) * np.log(u))
        points.append([n, float(kl), float(model), float(oracle)])
    within = [correlation(r, g) for r, g in zip(rewards, gold)]
    found = [c for c in within if c is not None]
    return {
        "rewards": rewards.ravel().tolist(),
        "gold": gold.ravel().tolist(),
        "per_prompt": m,
        "random": float(gold.mean()),
        "points": points,
        "within": float(np.mean(found)) if found else None,
        "prompts": len(found),
        "skipped": prompts - len(found),
        "overall": correlation(rewards.ravel(), gold.ravel()),
    }


def prompt_cases(rng):
    def draw(prompts, m, noise, decimals):
        gold = rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 1, (prompts, m))
        rewards = gold + rng.normal(0, noise, (prompts, m))
        return rewards.round(decimals), gold.round(decimals)

    ties = draw(12, 7, 0.5, 0)
    constant = draw(6, 5, 1.0, 2)
    constant[0][1] = 0.5
    constant[1][4] = -1.0
    flat = draw(3, 4, 1.0, 1)
    flat[0][:] = 2.0
    large = rng.permutation(300) / 100.0
    huge = rng.normal(0, 1, (1, 1000)).round(3)
    cases = [
        prompt_case(*draw(20, 8, 1.0, 3)),
        prompt_case(*draw(4, 10, 0.2, 3)),
        prompt_case(*ties),
        prompt_case(*constant),
        prompt_case(*flat),
        prompt_case(*draw(5, 1, 1.0, 2)),
        prompt_case(*draw(9, 2, 1.0, 2)),
        prompt_case(large[None] * 100, np.sin(large)[None].round(4), [1, 2, 3, 10, 150, 299, 300]),
        prompt_case(huge.round(1), huge, [1, 2, 10, 100, 500, 999, 1000]),
    ]
    # Enumeration and fractions agree.
    rewards, gold = ties
    for n in range(1, 8):
        found = [best(rewards[0], gold[0], n) for best in (best_of_subsets, best_exactly)]
        assert math.isclose(*found, abs_tol=1e-12)
    return cases


def rank_cases(rng):
    drawn = [rng.integers(0, 6, 25), rng.normal(0, 1, 20).round(2), np.zeros(4), np.array([0.0, -0.0, 1.0])]
    return [{"values": v.tolist(), "ranks": stats.rankdata(v).tolist()} for v in (np.asarray(v, float) for v in drawn)]


# Bootstrap -------------------------------------------------------------------------------------------------------


def philox(counter, key):
    """Philox4x32-10 of one counter, four words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def words(seed, number):
    """The words of resample `number`, without end."""
    for block in itertools.count():
        yield from philox([block, 0, number & 0xFFFFFFFF, number >> 32 | BOOTSTRAP << 24], [seed & 0xFFFFFFFF, seed >> 32])


def draws(seed, number, count):
    """`count` integers below `count`, each from the first word whose product with it is not rejected (Lemire 2019)."""
    stream, out = words(seed, number), []
    while len(out) < count:
        product = next(stream) * count
        if product % 2**32 >= 2**32 % count:
            out.append(product >> 32)
    return out


def bootstrap_case(values, groups, resamples, level, seed):
    values = np.asarray(values, np.float64)
    if groups is None:
        units = [values[i : i + 1] for i in range(len(values))]
    else:
        units = [values[groups == g] for g in np.unique(groups)]
    means = [float(np.mean(np.concatenate([units[i] for i in draws(seed, r, len(units))]))) for r in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # scipy's interval of the same kind, from random numbers of its own, is near.
    sums, sizes = np.array([u.sum() for u in units]), np.array([len(u) for u in units])
    other = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    near = other.standard_error * 10 / math.sqrt(resamples)
    assert abs(other.confidence_interval.low - low) <= near and abs(other.confidence_interval.high - high) <= near
    return {
        "values": values.tolist(),
        "groups": None if groups is None else groups.tolist(),
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "low": float(low),
        "high": float(high),
        "units": len(units),
    }


def bootstrap_cases(rng):
    groups = rng.integers(-5, 20, 120)
    return [
        bootstrap_case(rng.integers(0, 2, 100), None, 400, 0.95, 7),
        bootstrap_case(rng.normal(1, 2, 37).round(3), None, 251, 0.9, 2**40 + 3),
        bootstrap_case((rng.normal(0, 1, 120) + groups / 10).round(3), groups, 300, 0.95, 11),
        bootstrap_case(np.full(12, -1.5), None, 20, 0.95, 0),
    ]


# Splits ----------------------------------------------------------------------------------------------------------


def paired_case(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    difference = a - b
    test = stats.ttest_rel(a, b) if len(a) > 1 else None
    return {
        "a": a.tolist(),
        "b": b.tolist(),
        "mean": float(difference.mean()),
        "standard_error": float(stats.sem(difference)) if test else None,
        "wins": int((a > b).sum()),
        "t": float(test.statistic) if test else None,
        "p": float(test.pvalue) if test else None,
    }


def paired_cases(rng):
    cases = [
        paired_case(0.7 + rng.normal(0, 0.02, n).round(4) + shift, 0.7 + rng.normal(0, 0.02, n).round(4))
        for n, shift in [(2, 0.01), (3, 0.0), (5, 0.02), (10, 0.05), (30, -0.01), (200, 0.1)]
    ]
    ties = paired_case([0.5, 0.75, 0.5, 1.0], [0.5, 0.5, 0.5, 0.75])
    return [*cases, ties, paired_case([0.8], [0.7])]


def student(t, freedom):
    """The two-sided p value. Not from stats.t or special.stdtr, which lose digits at small t."""
    square = t * t
    if square > freedom:
        return float(special.betainc(freedom / 2, 0.5, freedom / (freedom + square)))
    return float(special.betaincc(0.5, freedom / 2, square / (freedom + square)))


def student_cases():
    ts = [0.0, 1e-8, 0.01, 0.5, 1.0, 1.96, 2.5, 6.0, 40.0, 1e4]
    freedoms = [1, 2, 3, 4, 9, 19, 100, 1234.5, 1e6]
    return [[t, f, student(t, f)] for t in ts for f in freedoms]


def beta_cases(rng):
    parameters = rng.uniform(0.05, 30, (40, 2)).round(3)
    cases = [[float(x), *map(float, ab)] for x, ab in zip(rng.uniform(0, 1, 40).round(4), parameters)]
    cases += [[0.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.5, 1e4, 1e4], [0.999, 0.1, 0.1], [0.3, 200.0, 500.0]]
    return [[*case, float(special.betainc(case[1], case[2], case[0]))] for case in cases]


def holm_cases(rng):
    ties = np.array([0.01, 0.01, 0.02, 0.02, 0.9, 0.0, 1.0])
    drawn = [rng.uniform(0, 1, 8).round(4), rng.uniform(0, 0.05, 12).round(4), ties, np.array([0.3])]
    return [{"p": p.tolist(), "corrected": multipletests(p, method="holm")[1].tolist()} for p in drawn]


def histogram_cases(rng):
    cases = []
    for values, bins, lower, upper in [
        (rng.normal(0, 2, 200).round(2), 8, -2.0, 2.0),
        (rng.integers(-4, 9, 100) / 4.0, 6, -0.5, 1.0),
        (rng.normal(0, 1, 40).round(3), 1, 0.0, 0.5),
    ]:
        counts, _ = np.histogram(np.clip(values, lower, upper), bins, (lower, upper))
        cases.append({"values": values.tolist(), "bins": bins, "lower": lower, "upper": upper, "counts": counts.tolist()})
    return cases


def main():
    golden = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=golden)
    out = parser.parse_args().out
    made = {
        "pairs": pair_cases(np.random.default_rng(1)),
        "prompts": prompt_cases(np.random.default_rng(2)),
        "ranks": rank_cases(np.random.default_rng(3)),
        "bootstrap": bootstrap_cases(np.random.default_rng(4)),
        "paired": paired_cases(np.random.default_rng(5)),
        "student": student_cases(),
        "beta": beta_cases(np.random.default_rng(6)),
        "holm": holm_cases(np.random.default_rng(7)),
        "histograms": histogram_cases(np.random.default_rng(8)),
    }
    # No NaN and no infinity: JSON has neither.
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in made.items())
    out.write_text("{\n" + text + "\n}\n")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
