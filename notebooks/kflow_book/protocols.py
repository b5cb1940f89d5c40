"""The protocols of notebooks/measurements.yaml: how each kind of record is measured.

A protocol takes a trained model (or none, for real data alone) and its settings, and returns values by name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm.auto import tqdm

from kflow import metrics
from kflow.amplitude import PCA, Fourier, Identity, Meyer, Wavelet
from kflow.data import images_of, load_autoencoder, load_data, to_float, to_uint8
from kflow.flow.schedule import band_intervals
from kflow.sample import grid, sample
from kflow.storage import CHECKPOINTS
from kflow_book.calibration import HELD_OUT, calibrate, held_out
from kflow_book.measure import Trained
from kflow_book.photographs import as_pixels, nearest, psnr, rebuild, with_mirrored

Values = dict[str, Any]
NEIGHBOURS = 10  # samples whose nearest training images a record names


@cache
def real_features(data: str, features: str) -> tuple[Tensor, Tensor]:
    """Features of the training and of the held-out images (at most 5,000); of latents, those of their images."""
    images = images_of(data)
    sets = (images.train, held_out(images))
    return tuple(metrics.extract_features(x, CHECKPOINTS / features, progress=False) for x in sets)


def generate_both(
    trained: Trained, labels: Tensor, drop_class_at: float, steps: int, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """Samples with the class kept and, from the same noise, dropped: (N, *shape) each. Until then they are one."""
    joins = sorted({*trained.model.path.schedule.joins, drop_class_at})
    shared = grid(joins, steps, 0.0, 1.0).index(drop_class_at)
    options = {"guidance_scale": guidance_scale, "start": drop_class_at, "steps": steps - shared}
    begun = {"guidance_scale": guidance_scale, "end": drop_class_at, "steps": shared}
    state = trained.generate(trained.noise(len(labels)), labels, "until the class is dropped", **begun)
    kept = trained.generate(state, labels, "class kept", **options)
    return kept, trained.generate(state, None, "class dropped", **options)


def measure_fidelity(
    trained: Trained,
    features: str,
    samples: int,
    steps: int,
    guidance_scale: float | None = None,
    judge: str = "",
    drop_class_at: float | None = None,
    class_count: int = 0,
    few_classes: int = 0,
) -> Values:
    """Fidelity against the held-out images in disjoint draws; with classes, what the judge says.

    ``drop_class_at`` measures too what dropping the class there changes, from the same noise; FID(c) is taken against
    ``class_count`` training images of each class: the held-out ones are too few. ``few_classes`` gives CDR over so many
    classes too, drawn with seed 0, as the paper has five.
    """
    labels = None if guidance_scale is None else trained.labels(samples)
    options = {"steps": steps, "guidance_scale": guidance_scale or 1.0}
    real_train, real_test = real_features(trained.experiment.data, features)

    def look(generated: Tensor) -> tuple[Values, Tensor]:
        images = trained.images(generated)
        found = metrics.extract_features(to_uint8(images), CHECKPOINTS / features, progress=False)
        draws = metrics.fidelity_of_draws(found, real_test)
        values: Values = {name: sum(draw) / len(draw) for name, draw in draws.items()}
        values |= {"draws": draws, "count": len(real_test)}
        if labels is not None:
            classifier, _ = metrics.load_classifier(CHECKPOINTS / judge)
            values["agreement"] = metrics.agreement(classifier, images, labels)
        return values, found

    if drop_class_at is None:
        return look(trained.generate(trained.noise(samples), labels, **options))[0]
    kept, dropped = generate_both(trained, labels, drop_class_at, **options)
    (values, before), (values_dropped, after) = look(kept), look(dropped)
    values["dropped"] = values_dropped
    counts = [*(n for n in (25, 50, 100, 200) if n < class_count), class_count]
    real = (real_train, images_of(trained.experiment.data).train_labels, range(trained.classes))
    pairs = {n: [metrics.class_distances(x, labels, *real, n) for x in (before, after)] for n in counts}
    values |= metrics.class_dropping_ratio(*pairs[class_count])
    if few_classes:
        few = torch.randperm(trained.classes, generator=torch.Generator().manual_seed(0))[:few_classes]
        values["cdr_few_classes"] = metrics.class_dropping_ratio(*(d[few] for d in pairs[class_count]))["cdr"]
    values["class_fd"], values["dropped"]["class_fd"] = (float(d.mean()) for d in pairs[class_count])
    values["cdr_by_count"] = {str(n): metrics.class_dropping_ratio(*pair)["cdr"] for n, pair in pairs.items()}
    ruler = Wavelet(trained.shape, "db6")
    others = kept.roll(trained.classes, 0)  # of the same class
    values["detail_kept"] = float(metrics.content_kept(kept, dropped, others, ruler)[1])
    energy = [float(ruler.energy(x)[:, 1].sum()) for x in (dropped, kept)]
    return values | {"detail_energy": energy[0] / energy[1]}


def measure_agreement(trained: Trained, judge: str, samples: int, steps: int, guidance_scale: float) -> Values:
    """How often the judge gives a class-conditional sample the class that it was asked for; 95 % Wilson interval."""
    classifier, card = metrics.load_classifier(CHECKPOINTS / judge)
    labels = trained.labels(samples)
    images = trained.generate(trained.noise(samples), labels, steps=steps, guidance_scale=guidance_scale)
    right = int((metrics.classify(classifier, trained.images(images)) == labels).sum())
    interval = list(binomtest(right, samples).proportion_ci(method="wilson"))
    return {
        "agreement": right / samples,
        "agreement_interval": interval,
        "judge_agreement": card["test_accuracy"],
        "judge_images": card["test_images"],
    }


def measure_bands(trained: Trained, samples: int, steps: int) -> Values:
    """Leakage, and how finished and waiting bands keep still, along class-conditional trajectories."""
    experiment, path = trained.experiment, trained.model.path
    labels = trained.labels(samples)
    trajectory = trained.generate(trained.noise(samples), labels, steps=steps, trajectory=True)
    k = sample(trained.model, trained.noise(1), labels[:1], steps=steps, trajectory=True).k
    gone, left = metrics.way_of_bands(trajectory, path.decomposition)
    outside = metrics.leakage(trajectory, k, path)
    starts, ends = band_intervals(experiment.bands, experiment.intervals, experiment.order)
    first, last = starts.index(min(starts)), ends.index(max(ends))
    join, start = (int((k - at).abs().argmin()) for at in (ends[first], starts[last]))
    ways = {"left_at_join": left[join, first], "gone_at_join": gone[join, last], "gone_at_start": gone[start, last]}
    ways = {name: float(way) for name, way in ways.items()}
    return {"leakage": float(outside.mean()), "leakage_by_step": outside.tolist(), **ways}


def measure_trajectory(trained: Trained, samples: int, steps: int) -> Values:
    """Error of projecting trajectories on two components, and the ratio of its means over the two bands' stages."""
    trajectory = trained.generate(trained.noise(samples), steps=steps, trajectory=True)
    k = torch.linspace(0, 1, len(trajectory))
    stages = (k <= 0.5, k >= 0.5) if trained.experiment.order == "low-to-high" else (k >= 0.5, k <= 0.5)
    values: Values = {"k": k.tolist()}
    for name, centred in (("centred", True), ("uncentred", False)):
        error = metrics.projection_error(trajectory, centred=centred).mean(1)
        low, high = (float(error[stage].mean()) for stage in stages)
        values |= {f"{name}_error": error.tolist(), f"{name}_low_over_high": low / high}
    return values


def measure_steering(trained: Trained, samples: int, steps: int) -> Values:
    """What stays the same where one band's noise is shared and the other's not (Algorithm 2); LFM in db6's bands."""
    ruler = trained.model.path.decomposition
    ruler = Wavelet(ruler.shape, "db6") if isinstance(ruler, Identity) else ruler
    first, second, third = trained.noise(3 * samples).split(samples)
    low = ruler.split(second - first)[0]
    noises = {"plain": first, "independent": third, "high_noise": first + low, "low_noise": second - low}
    results = {name: trained.generate(noise, what=name, steps=steps) for name, noise in noises.items()}
    values = {}
    for shared in ("high_noise", "low_noise"):
        kept = metrics.content_kept(results["plain"], results[shared], results["independent"], ruler)
        values |= {f"low_kept_by_{shared}": float(kept[0]), f"high_kept_by_{shared}": float(kept[-1])}
    return values


def measure_localised(trained: Trained, features: str, samples: int, fidelity_samples: int, steps: int) -> Values:
    """What one band's noise, redrawn on the way, changes in each band, with the plain sampler and the localised one.

    The state still holds the share 1 − w_b(k) of band b's noise, and that share is drawn again: all of it at k = 0; at
    the join all of a waiting band's and none of a finished band's. LFM has no join; it is stopped at k = 1/2, and
    measured in db6's bands. Beside it leakage, and the Fréchet distance of class-conditional samples.
    """
    path, values = trained.model.path, {}
    lfm = isinstance(path.decomposition, Identity)
    ruler = Wavelet(path.decomposition.shape, "db6") if lfm else path.decomposition
    first, second, third = trained.noise(3 * samples).split(samples)
    change, points = ruler.split(second - first), grid(path.schedule.joins, steps)
    stops = {"start": 0, "join": points.index(0.5 if lfm else path.schedule.joins[0])}
    real = real_features(trained.experiment.data, features)[1]
    for sampler in ("plain", "localised"):
        options = {"localised": sampler == "localised"}
        way = trained.generate(first, what=sampler, steps=steps, trajectory=True, **options)
        independent = trained.generate(third, what=f"{sampler}, independent", steps=steps, **options)
        values[f"leakage_{sampler}"] = float(metrics.leakage(way, torch.tensor(points), path).mean())
        off = ruler.split(way[-1] - independent).flatten(1).abs().amax(1)
        values |= {f"{sampler}_{band}_off_independent": float(x) for band, x in zip(("low", "high"), off)}
        for where, index in stops.items():
            waiting = 1 - path.schedule(torch.tensor([points[index]]))[0][0].expand(ruler.bands)
            for redrawn, band in (("high", -1), ("low", 0)):
                state, what = way[index] + waiting[band] * change[band], f"{redrawn}_redrawn_at_{where}"
                end = trained.generate(state, None, what, steps=steps - index, start=points[index], **options)
                kept = metrics.content_kept(way[-1], end, independent, ruler)
                off = ruler.split(way[-1] - end).flatten(1).abs().amax(1)
                for name, share, most in zip(("low", "high"), kept, off):
                    values[f"{sampler}_{name}_kept_{what}"] = float(share)
                    values[f"{sampler}_{name}_off_{what}"] = float(most)
        many, what = trained.noise(fidelity_samples), f"{sampler}, for the distance"
        images = trained.images(trained.generate(many, trained.labels(len(many)), what, steps=steps, **options))
        found = metrics.extract_features(to_uint8(images), CHECKPOINTS / features, progress=False)
        draws = metrics.fidelity_of_draws(found, real)
        values |= {f"{sampler}_{name}": sum(draws[name]) / len(draws[name]) for name in ("fd", "precision", "recall")}
    at_start = [values[f"{sampler}_low_kept_high_redrawn_at_start"] for sampler in ("plain", "localised")]
    return values | {
        "fd_ratio": values["localised_fd"] / values["plain_fd"],
        "low_kept_gain": at_start[1] - at_start[0],
    }


def measure_dropping(
    trained: Trained, features: str, judge: str, samples: int, class_count: int, steps: int, points: list[list[float]]
) -> Values:
    """What dropping the class changes, for each pair of a guidance and a k at which it is dropped (Figures 11 and 12).

    All in db6's bands. ``distance`` is the root of E‖a − b‖² / E‖a − c‖², for a sample a with the class, b the same
    with the class dropped, and c another of the class.
    """
    labels, ruler, values = trained.labels(samples), Wavelet(trained.shape, "db6"), {}
    classifier, _ = metrics.load_classifier(CHECKPOINTS / judge)
    real = (
        real_features(trained.experiment.data, features)[0],
        images_of(trained.experiment.data).train_labels,
        range(trained.classes),
    )

    @cache
    def look(guidance: float, at: float | None) -> tuple[Tensor, float, Tensor]:
        options = {"steps": steps, "guidance_scale": guidance, "drop_class_at": at}
        images = trained.generate(trained.noise(samples), labels, f"guidance {guidance}, drop {at}", **options)
        pixels = trained.images(images)
        found = metrics.extract_features(to_uint8(pixels), CHECKPOINTS / features, progress=False)
        distances = metrics.class_distances(found, labels, *real, class_count)
        return images, metrics.agreement(classifier, pixels, labels), distances

    for guidance, at in points:
        (kept, agreement, before), (dropped, after_agreement, after) = look(guidance, None), look(guidance, at)
        others, name = kept.roll(trained.classes, 0), f"{guidance:g}_{at:g}"  # others: of the same class
        low, high = metrics.content_kept(kept, dropped, others, ruler).tolist()
        distance = (kept - dropped).square().mean().sqrt() / (kept - others).square().mean().sqrt()
        values |= {f"low_kept_{name}": low, f"high_kept_{name}": high, f"distance_{name}": float(distance)}
        values |= {f"agreement_{name}": agreement, f"agreement_dropped_{name}": after_agreement}
        values[f"cdr_{name}"] = metrics.class_dropping_ratio(before, after)["cdr"]
    first, last = (values[f"distance_{guidance:g}_{at:g}"] for guidance, at in (points[0], points[-1]))
    return values | {"distance_ratio": last / first}


def measure_evaluations(trained: Trained, samples: int, tolerance: float) -> Values:
    """Network evaluations of dopri5 (Table 7): each sample alone, without classes, in float32."""
    counts = [
        sample(trained.model, noise[None], solver="dopri5", tolerance=tolerance).nfe
        for noise in tqdm(trained.noise(samples), desc=f"{trained.experiment.name}: evaluations")
    ]
    return {"nfe": sum(counts) / samples, "nfe_sd": float(torch.tensor(counts).double().std())}


def measure_copies(trained: Trained, features: str, samples: int, steps: int) -> Values:
    """Whether samples are copies of training images: how near the nearest is, beside what held-out images have.

    Distances are in features and in pixels (root mean square), to the training images as they are and mirrored. A
    ``copied`` share of the samples is nearer than all but one in a hundred held-out images. ``neighbours`` are which is
    nearest to each of the first samples, for :func:`~kflow_book.photographs.neighbour_rows`.
    """
    images = images_of(trained.experiment.data)
    labels = trained.labels(samples) if trained.experiment.conditional else None
    made = to_uint8(trained.images(trained.generate(trained.noise(samples), labels, steps=steps)))
    among, held, values = with_mirrored(images.train), held_out(images), {}
    extract = lambda x: metrics.extract_features(x, CHECKPOINTS / features, progress=False)  # noqa: E731
    for name, look in {"features": extract, "pixels": as_pixels}.items():
        train = look(among)
        (generated, indices), (real, _) = (nearest(look(x), train) for x in (made, held))
        generated, real = generated.double(), real.double()
        values[f"neighbours_{name}"] = indices[:NEIGHBOURS].tolist()
        values[f"nearest_{name}"], values[f"nearest_{name}_held_out"] = float(generated.median()), float(real.median())
        values[f"copied_{name}"] = float((generated < real.quantile(0.01)).double().mean())
    return values


def measure_steps(trained: Trained, features: str, samples: int, evaluations: list[int]) -> Values:
    """Fréchet distance by number of evaluations, for each stepper, asked at the step's start and middle."""
    values: Values = {}
    real, labels = real_features(trained.experiment.data, features)[1], trained.labels(samples)
    for solver in ("euler", "increment") if trained.model.output == "displacement" else ("euler",):
        for ask in ("start", "middle"):
            for steps in evaluations:
                options = {"what": f"{solver}, {ask}, {steps}", "steps": steps, "solver": solver, "ask": ask}
                images = to_uint8(trained.images(trained.generate(trained.noise(samples), labels, **options)))
                found = metrics.extract_features(images, CHECKPOINTS / features, progress=False)
                draws = metrics.fidelity_of_draws(found, real)["fd"]
                values.setdefault(f"fd_{solver}_{ask}", {})[str(steps)] = sum(draws) / len(draws)
    return values


def measure_energy(data: str, bands: dict[str, int], resamples: int) -> Values:
    """Mean norm of each band of real images (Figure 6), and the largest ratio of a band's to that of the one before."""
    found = load_data(data)
    images = found.to_float(found.train)
    make = {
        "Fourier": lambda n: Fourier(images.shape[1:], n),
        "Meyer": lambda n: Meyer(images.shape[1:], n - 1),
        "PCA": lambda n: PCA.fit([images], n),
    }
    wavelet = lambda name: lambda n: Wavelet(images.shape[1:], name.lower(), n - 1)  # noqa: E731
    found = {name: make.get(name, wavelet(name))(n) for name, n in bands.items()}
    norms = {name: d.energy(images - d.mean if name == "PCA" else images).sqrt() for name, d in found.items()}

    def largest(chosen: Tensor | slice) -> float:
        means = [n[chosen].mean(0) for n in norms.values()]
        return max(float((mean[1:] / mean[:-1]).max()) for mean in means)

    source = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(images), (len(images),), generator=source) for _ in range(resamples)]
    interval = torch.tensor([largest(draw) for draw in draws]).quantile(torch.tensor([0.025, 0.975]))
    means = {name: n.mean(0).tolist() for name, n in norms.items()}
    return {"norms": means, "largest_ratio": largest(slice(None)), "largest_ratio_interval": interval.tolist()}


def measure_calibration(data: str, features: str, images: int | None = None) -> Values:
    """What the feature network sees in real images: :func:`~kflow_book.calibration.calibrate`."""
    return calibrate(load_data(data), CHECKPOINTS / features, images)


def measure_reconstruction(data: str, autoencoder: str, features: str, judge: str = "") -> Values:
    """What an autoencoder keeps: the bound of what any flow in its latents can reach.

    PSNR of the held-out images. ``fd``, ``recall`` and ``precision`` of reconstructed training images to the held-out
    ones, in draws as of samples: what a flow would have that gave back the training latents; ``floor`` of the training
    images as they are. ``judge`` tells the classes of held-out images and of their reconstructions.
    """
    images, coder = load_data(data), load_autoencoder(CHECKPOINTS / autoencoder)[0]
    extract = lambda x: metrics.extract_features(x, CHECKPOINTS / features, progress=False)  # noqa: E731
    again = rebuild(images.test, coder)
    decibels = psnr(images.test, again)
    values: Values = {"psnr": float(decibels.mean()), "psnr_sd": float(decibels.std())}
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    train, real = images.train[order], extract(held_out(images))
    for name, x in {"floor": train, "fd": rebuild(train, coder)}.items():
        draws = metrics.fidelity_of_draws(extract(x), real)
        means = {key: sum(draw) / len(draw) for key, draw in draws.items()}
        values |= {name: means["fd"]} | ({key: means[key] for key in ("recall", "precision")} if name == "fd" else {})
    values["count"] = len(real)
    if judge:
        classifier, _ = metrics.load_classifier(CHECKPOINTS / judge)
        for name, x in {"agreement_images": images.test, "agreement_reconstructed": again}.items():
            values[name] = metrics.agreement(classifier, to_float(x), images.test_labels)
    return values
