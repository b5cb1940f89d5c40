"""Numbers in prose are those of the records: a sentence is written here with its numbers computed, and must stand so.

A sentence that no longer stands on its page after a new run says, in the failure, what it has to be.
"""

import json
import math
import re
from functools import cache

import numpy as np
import pytest
import torch

from kflow.checkpoint import load_model
from kflow.records import RECORDS, Record
from kflow.storage import CHECKPOINTS, ROOT
from kflow_book.claims import judge_claim, load_rules
from kflow_book.tables import get_value, read_seeds

#: of restoration: data sets, flows, tasks
SETS, OUTPUTS = ("faces32", "digits"), ("db6", "db6-displacement")
SHARP, BOX, NOISY, BLURRED = ("super_resolution", "inpainting", "denoising", "deblurring")
WORDS = "no one two three four five six seven eight nine ten".split()


@cache
def seeds_of(run, measurement):
    """The records of a run, by training seed."""
    return read_seeds(run, measurement)


def mean(run, value):
    """Mean over the training seeds of ``MEASUREMENT/KEY``."""
    measurement, key = value.split("/", 1)
    return float(np.mean([get_value(record, key) for record in seeds_of(run, measurement).values()]))


def first(run, value):
    """The value of training seed 0."""
    measurement, key = value.split("/", 1)
    return get_value(seeds_of(run, measurement)[0], key)


def alone(name, key):
    """A value of a record that stands on no run."""
    return get_value(Record.read(RECORDS / f"{name}.json"), key)


def ratio(run, other, value):
    """Geometric mean over the seeds that both runs have of the ratio of their values, and its 95 % interval if any."""
    rule = {"value": value, "of": run, "against": other, "compare": "ratio", "rule": "below", "limit": 1.0}
    verdict = judge_claim(rule)
    return verdict.estimate, *(verdict.interval or (math.nan, math.nan))


def percent(share, digits=0):
    """A share as the prose has it."""
    return f"{100 * share:.{digits}f} %"


def by_precision():
    """Our variant's distance on faces: the seed in float32, and those in bf16."""
    records = [record for _, record in sorted(seeds_of("faces-db6-uniform-w", "unconditional-faces").items())]
    assert [record.machine["precision"] for record in records] == ["bf16-mixed", "bf16-mixed", "32-true"]
    *others, last = (get_value(record, "fd") for record in records)
    return f"{last:.1f}, the two in bf16 {pair(others)}"


def faces():
    """14_faces."""
    fd, lfm, db6 = "unconditional-faces/fd", "faces-lfm", "faces-db6"
    times, low, high = ratio(db6, lfm, fd)
    yield (
        f"db6 has {times:.2f} times LFM's Fréchet distance (95 % interval {low:.2f} to {high:.2f}) and less recall, "
        f"{mean(db6, 'unconditional-faces/recall'):.2f} beside {mean(lfm, 'unconditional-faces/recall'):.2f}."
    )
    yield f"LFM itself has {mean(lfm, fd) / alone('faces-calibration', 'floor'):.0f} times the distance of real faces"
    yield f"has {ratio('faces-one-band-hard', lfm, fd)[0]:.2f} times LFM's distance with one training seed"
    uniform = "faces-db6-uniform-w"
    (times, low, high), beside = ratio(uniform, lfm, fd), ratio(uniform, db6, fd)
    yield (
        f"the distance falls to {times:.2f} times LFM's (95 % interval {low:.2f} to {high:.2f}), {beside[0]:.2f} times "
        f"db6's ({beside[1]:.2f} to {beside[2]:.2f})."
    )
    yield f"in float32, on a processor without bf16; it has {by_precision()}."
    more = "unconditional-faces-60-steps/fd"
    yield (
        f"With 60 (seed 0) db6 has {first(db6, more):.1f} in place of {first(db6, fd):.1f}, LFM {first(lfm, more):.1f} "
        f"in place of {first(lfm, fd):.1f}, so {first(db6, more) / first(lfm, more):.2f} times its distance in place "
        f"of {first(db6, fd) / first(lfm, fd):.2f}."
    )
    of = {name: f"{first(f'faces-{name}', fd) / first(db6, fd):.2f}" for name in (
        "fourier", "db6-displacement", "haar", "meyer", "db6-three-bands", "pca", "db6-reversed")}  # fmt: skip
    yield f"(the table has db6's mean of three, {percent(mean(db6, fd) / first(db6, fd) - 1)} higher): " + (
        f"Fourier {of['fourier']} times its distance, displacement (our output) {of['db6-displacement']}, "
        f"Haar {of['haar']}, Meyer {of['meyer']}, three bands {of['db6-three-bands']}, PCA {of['pca']}, "
        f"reversed {of['db6-reversed']}."
    )
    yield f"An adaptive solver needs {ratio(db6, lfm, 'nfe/nfe')[0]:.2f} times as many evaluations for db6"
    centred, uncentred = (f"trajectory/{which}_low_over_high" for which in ("centred", "uncentred"))
    yield (
        f"{mean(db6, centred):.2f} times as much, centred ({mean(db6, uncentred):.2f} uncentred; between LFM's two "
        f"halves {mean(lfm, centred):.2f} and {mean(lfm, uncentred):.2f})."
    )
    kept = "steering/high_kept_by_high_noise"
    yield (
        f"keeps {percent(mean(db6, kept))} of the high band's content with db6, and {percent(mean(lfm, kept))} with "
        f"LFM given the same noises; on faces in pixels it was {percent(mean('faces32-db6', kept))} and "
        f"{percent(mean('faces32-lfm', kept))} (one seed), on digits {percent(mean('digits-db6', kept))} and "
        f"{percent(mean('digits-lfm', kept))}."
    )
    most = {run: percent(max(alone(f"{run}-copies-faces", f"copied_{what}") for what in ("features", "pixels")), 1)
            for run in (lfm, db6, "showcase-faces")}  # fmt: skip
    yield f"at most {most[lfm]} of LFM's samples, {most[db6]} of db6's and {most['showcase-faces']} of the showcase's"
    showcase = alone("showcase-faces-showcase-faces", "fd")
    yield f"Its distance is {showcase:.1f}; LFM's, after a third of the images, is {mean(lfm, fd):.1f}"
    left = [
        alone(f"faces-{flow}-all-faces", "fd") / alone(f"search-{start}-{flow}-seed9-recipe-faces", "fd")
        for flow in ("lfm", "db6")
        for start in ("start", "tenth")
    ]
    yield f"Ten times the images leave {100 * min(left):.0f} to {percent(max(left))} of the distance."


def cifar10():
    """15_cifar10."""
    lfm, fourier, db6, ours = "cifar10-lfm", "cifar10-fourier", "cifar10-db6", "cifar10-db6-uniform-w"
    fd, recall, agreement = (f"guided-cifar10/{key}" for key in ("fd", "recall", "agreement"))
    times, low, high = ratio(fourier, lfm, fd)
    yield (
        f"Fourier has {times:.2f} times its distance (interval {low:.2f} to {high:.2f}; {mean(fourier, fd):.1f} and "
        f"{mean(lfm, fd):.1f}) and a recall of {mean(fourier, recall):.2f} beside {mean(lfm, recall):.2f};"
    )
    times, low, high = ratio(ours, lfm, fd)
    yield (f"uniform w {times:.2f} times ({low:.2f} to {high:.2f}; {mean(ours, fd):.1f}) and {mean(ours, recall):.2f}.")
    times, low, high = ratio(ours, fourier, fd)
    yield f"its distance is {times:.2f} times Fourier's ({low:.2f} to {high:.2f})"
    scatter = [
        np.std([get_value(record, "fd") for record in seeds_of(run, "guided-cifar10").values()], ddof=1)
        for run in (lfm, fourier, ours)
    ]
    named = ", ".join(f"{who} {value:.1f}" for who, value in zip(("LFM", "Fourier", "uniform w"), scatter))
    yield f"K-Flow's seeds scatter more (sd of the distance: {named})."
    free = [ratio(run, lfm, "conditional-cifar10/fd")[0] for run in (fourier, ours)]
    yield f"Without guidance Fourier and uniform w have {pair(free, 2)} times LFM's distance."
    yield (
        f"db6 with one seed has {first(db6, fd):.1f} and {first(db6, recall):.2f}, that seed of Fourier "
        f"{first(fourier, fd):.1f} and {first(fourier, recall):.2f}, of uniform w {first(ours, fd):.1f} and "
        f"{first(ours, recall):.2f}."
    )
    displaced, back = "cifar10-db6-displacement", "cifar10-db6-reversed"
    (times, kept, seen), (back_times, back_kept, back_seen), (_, base_kept, base_seen) = (
        (first(run, fd) / first(db6, fd), first(run, recall), percent(first(run, agreement)))
        for run in (displaced, back, db6)
    )
    yield (
        f"In the reversed order db6 has {back_times:.2f} times its distance, a recall of {back_kept:.2f} beside "
        f"{base_kept:.2f} and an agreement of {back_seen} beside {base_seen};"
    )
    yield f"With the displacement as its output (ours) it has {times:.2f} times its distance and {kept:.2f}, {seen}."
    fds, agreements = (
        [get_value(record, key) for record in seeds_of(fourier, "guided-cifar10").values()]
        for key in ("fd", "agreement")
    )
    yield (
        f"Fourier's three seeds alone scatter by {percent(np.std(fds, ddof=1) / np.mean(fds))} of the distance and "
        f"{100 * np.std(agreements, ddof=1):.1f} percentage points of agreement (sd)"
    )
    assert first(db6, agreement) - first(back, agreement) > 3 * np.std(agreements, ddof=1)
    yield "so only the lower agreement stands out, and that between float32 and bf16."
    plain = [[first(run, f"conditional-cifar10/{key}") for run in (back, db6)] for key in ("recall", "fd")]
    faces, digits = (
        ratio(f"{data}-db6-reversed", f"{data}-db6", value)[0]
        for data, value in (("faces", "unconditional-faces/fd"), ("digits", "conditional/fd"))
    )
    yield f"On faces the reversed order has {faces:.2f} times db6's distance with one seed"
    yield f"on digits {digits:.1f} times ("
    yield f"{plain[1][0] / plain[1][1]:.2f} times the distance, a recall of {pair(plain[0], 2)}"
    rebuilt = alone("cifar10-reconstruction", "agreement_reconstructed")
    yield (
        f"The judge sees it in {percent(mean(lfm, agreement))} of LFM's samples, {percent(mean(fourier, agreement))} "
        f"of Fourier's, {percent(mean(ours, agreement))} of uniform w's and {percent(mean(db6, agreement))} of db6's; "
        f"of real images that the autoencoder has rebuilt it knows {percent(rebuilt)}."
    )
    floor = alone("cifar10-calibration", "floor_balanced")
    yield f"LFM's distance is {mean(lfm, fd) / floor:.0f} times that of real images"
    cdr = "guided-cifar10/cdr"
    yield (
        f"multiplies the distance of a class (CDR) by {mean(fourier, cdr):.2f} with Fourier, {mean(ours, cdr):.2f} "
        f"with uniform w, {mean(db6, cdr):.2f} with db6 and {mean(lfm, cdr):.2f} with LFM;"
    )
    after = sorted(percent(mean(run, "guided-cifar10/dropped/agreement")) for run in (fourier, db6, ours, lfm))
    of_class = [mean(run, "guided-cifar10/class_fd") for run in (fourier, db6, ours)]
    dropped = mean(lfm, "guided-cifar10/dropped/class_fd")
    assert dropped < min(of_class[:2]) and abs(dropped / of_class[2] - 1) < 0.03
    yield (
        f"LFM's classes when dropped ({dropped:.1f}) are nearer than Fourier's ({of_class[0]:.1f}) or db6's "
        f"({of_class[1]:.1f}) when kept, and as near as uniform w's ({of_class[2]:.1f}), and after dropping the judge "
        f"sees the class about as often with these four, in {after[0][:2]} to {after[-1]}."
    )
    few = [alone(f"{run}-dropping-cifar10", "cdr_1.5_0.3") for run in (lfm, fourier, db6)]
    matched = alone(f"{lfm}-dropping-matched-cifar10", "cdr_1.5_0.648")
    yield f"has a CDR of {matched:.2f} ({few[0]:.2f} at $k = 0.3$), Fourier {few[1]:.2f}, db6 {few[2]:.2f}"
    energy = [mean(run, "guided-cifar10/detail_energy") for run in (lfm, fourier)]
    yield f"LFM's high band keeps {energy[0]:.2f} of its energy, Fourier's {energy[1]:.2f}."
    curve = [mean(lfm, f"guided-cifar10/cdr_by_count/{count}") for count in (200, 500)]
    assert curve[1] > 1.03 * curve[0]
    yield "At 500 LFM's still rises"
    three, two = (
        [first(f"cifar10-db6-{bands}unconditional", f"unconditional-cifar10/{key}") for key in ("fd", "recall")]
        for bands in ("three-bands-", "")
    )
    yield (
        f"three bands have {three[0] / two[0]:.2f} times the distance of two ({pair((three[0], two[0]))}; "
        f"recall {pair((three[1], two[1]), 2)})."
    )
    cards = {path.parent.name: json.loads(path.read_text()) for path in CHECKPOINTS.glob("cifar10-*/card.json")}
    precisions = {run: card["precision"] for run, card in cards.items() if "precision" in card}
    assert {run for run, precision in precisions.items() if precision == "32-true"} == {
        *(ours, displaced, back),
        *(run for run in precisions if run.endswith("-unconditional")),
    }
    for run in (lfm, fourier, db6, ours, displaced, back):
        sampled = {record.machine["precision"] for record in seeds_of(run, "guided-cifar10").values()}
        assert sampled == {precisions[run]}
    minutes = {
        precision: [cards[run]["seconds"] / 60 for run in precisions if precisions[run] == precision]
        for precision in ("bf16-mixed", "32-true")
    }
    (least, most), (slow, slowest) = ((min(found), max(found)) for found in minutes.values())
    yield f"{least:.0f} to {most:.0f} minutes of one new core, by what else the machine did; "
    yield f"{slow:.0f} to {slowest:.0f} of one without bf16)"
    yield "The three variants of db6 were trained and sampled in float32, the others in bf16."
    yield f"On faces the seed of uniform w that ran in float32 has a distance of {by_precision()} ("
    yield "both in float32, 30 Euler steps"
    for run in (lfm, fourier, ours):
        ten, five = ([record.values[key] for record in seeds_of(run, "guided-cifar10").values()]
                     for key in ("cdr", "cdr_few_classes"))  # fmt: skip
        assert abs(np.mean(ten) - np.mean(five)) > 2 * max(np.std(ten, ddof=1), np.std(five, ddof=1))
    yield "which classes are taken moves it more than the training seed does."
    for what in ("features", "pixels"):
        near, usual = (alone(f"{lfm}-copies-cifar10", f"nearest_{what}{whose}") for whose in ("", "_held_out"))
        assert 0.9 * usual < near < usual
    yield "In the median samples are a little nearer than held-out images"
    showcase = [alone("showcase-cifar10-showcase-cifar10", key) for key in ("fd", "recall", "agreement")]
    yield (
        f"Guided, its distance is {showcase[0]:.1f}, its recall {showcase[1]:.2f}, and the judge sees the class asked "
        f"for in {percent(showcase[2])} of 5,000 samples; LFM, after a third of the images, has {mean(lfm, fd):.1f}, "
        f"{mean(lfm, recall):.2f} and {percent(mean(lfm, agreement))}."
    )
    assert not any(alone(f"{lfm}-copies-cifar10", f"copied_{what}") for what in ("features", "pixels"))
    copied = [alone("showcase-cifar10-copies-cifar10", f"copied_{what}") for what in ("features", "pixels")]
    yield (
        "None of a thousand unguided LFM samples is nearer to a training image than 99 % of held-out images are; at "
        f"most {percent(max(copied), 1)} of the showcase's are"
    )
    longer = f"{showcase[0]:.1f} and {showcase[1]:.2f}"
    yield f"Uniform w trained three times longer (the showcase, one seed) has {longer}, still behind LFM."
    assert showcase[0] > mean(lfm, fd) and showcase[1] < mean(lfm, recall)


def verdict(value, run=None):
    """What the ledger says of a value, of a run if it stands on one."""
    rules = (rule for rule in load_rules() if rule.get("value") == value and rule.get("of") == run)
    return judge_claim(next(rules)).verdict


def samples(name):
    """Of a record that stands on no run."""
    return Record.read(RECORDS / f"{name}.json").samples


def packed(run, key="pm_atom"):
    """A value of crystals by training seed; ``pm_atom_by_crystal/CODE`` is one crystal's."""
    return np.array([get_value(record, key) for record in seeds_of(f"crystals-{run}", "packing").values()])


def by_crystal(run):
    """PM (atom) of each held-out crystal, mean over the training seeds."""
    records = seeds_of(f"crystals-{run}", "packing").values()
    return np.mean([list(record.values["pm_atom_by_crystal"].values()) for record in records], axis=0)


def listed(values, digits=1):
    """Numbers, the last after "and"."""
    *others, last = (f"{value:.{digits}f}" for value in values)
    return f"{', '.join(others)} and {last}"


def steering():
    """06_steering."""
    by_low, by_high = ("steering/{}_kept_by_low_noise", "steering/{}_kept_by_high_noise")
    db6, back, lfm = "digits-db6", "digits-db6-reversed", "faces32-lfm"
    yield (
        f"in the forward order {mean(db6, by_low.format('low')):.2f} of the low band and "
        f"{mean(db6, by_low.format('high')):.2f} of the high one, in the reversed order "
        f"{mean(back, by_high.format('high')):.2f} of the high band and {mean(back, by_high.format('low')):.2f} of the "
        "low one"
    )
    fourth, whole = mean("faces32-db6", by_high.format("high")), mean(lfm, by_high.format("high"))
    assert abs(fourth - 0.25) < 0.025 and fourth < whole / 2
    yield "about a quarter of the high band's content, which on digits was nearly nothing. It is still less than half"
    yield (
        f"keeps {mean(lfm, by_low.format('low')):.2f} of the low band with the low noise too "
        f"(K-Flow {mean('faces32-db6', by_low.format('low')):.3f})"
    )
    kept = "localised/{}_high_kept_high_redrawn_at_join"
    db6, fourier, pca = (mean(f"digits-{run}", kept.format("localised")) for run in ("db6", "fourier", "pca"))
    assert f"{db6:.2f}" == f"{fourier:.2f}"
    yield f"whose noise is new, {db6:.2f} stays as it was with db6 and Fourier"
    key = kept.format("plain").split("/")[1]
    plain = [record.values[key] for record in seeds_of("digits-pca", "localised").values()]
    yield (
        f"With PCA {pca:.2f} stays where the plain sampler leaves {np.mean(plain):.2f} "
        f"({min(plain):.2f} to {max(plain):.2f} over seeds)"
    )


def trajectories():
    """07_trajectories."""
    schedule = load_model(CHECKPOINTS / "digits-db6-soft-wide")[0].path.schedule
    yield f"(with the soft bump of 0.75, {percent(1 - float(schedule(torch.tensor([0.5]))[0][0, 0]))})"


def restored(who, task, value="psnr"):
    """Table 10 on (faces, digits), seed 0: a flow by its run, searched; OT-ODE; or a classical method by its name."""
    searched = "searched" if task in (SHARP, BOX) else "searched-others"
    names = {"ot-ode": "lfm-restoration-ot-ode"}
    names |= {flow: f"{flow}-restoration-{searched}" for flow in ("lfm", *OUTPUTS)}
    key = f"{task}_{value}" if who in names else f"{who}/{task}_{value}"
    return np.array([alone(f"{data}-{names.get(who, 'restoration-classical')}", key) for data in SETS])


def ablation(task, change="start", value="0.3"):
    """PSNR on (faces, digits) × (velocity, displacement); of the base, if no change is named."""
    key = f"{task}_psnr_by_change/{change}/{value}"
    return np.array([[alone(f"{data}-{flow}-restoration-ablation", key) for flow in OUTPUTS] for data in SETS])


def gains(task, change, value):
    """What a change gains over the base, as ``ablation``."""
    return ablation(task, change, value) - ablation(task)


def span(values, digits=1):
    """From the least of the numbers to the greatest."""
    return f"{np.min(values):.{digits}f} to {np.max(values):.{digits}f}"


def within(values):
    """The lowest tenth that none of the numbers is above, whatever their signs."""
    return f"{math.ceil(10 * np.max(np.abs(values))) / 10:.1f}"


def pair(values, digits=1, word="and"):
    """Two numbers."""
    return f"{values[0]:.{digits}f} {word} {values[1]:.{digits}f}"


def restoration():
    """09_restoration."""
    ahead = {task: restored("db6", task) - restored("lfm", task) for task in (SHARP, BOX, NOISY, BLURRED)}
    assert ahead[SHARP][1] > 0 and sum((gap > 0).sum() for gap in ahead.values()) == 1
    yield "PnP-Flow has the higher PSNR in inpainting, denoising and deblurring on both sets, and K-Flow in super-resol"
    kflow, pnp = (seeds_of(f"digits-{flow}", "restoration-searched") for flow in ("db6", "lfm"))
    psnr, ssim, half = (
        np.array([kflow[seed].values[f"{SHARP}_{ours}"] - pnp[seed].values[f"{SHARP}_{theirs}"] for seed in kflow])
        for ours, theirs in (("psnr", "psnr"), ("ssim", "ssim"), ("half_psnr", "psnr"))
    )
    assert min(psnr) > 0 > max(ssim) and max(abs(half)) < 0.25  # as the ledger has "on par"
    yield (
        f"it is on digits ahead by about {psnr.mean():.1f} dB in PSNR, and behind by {-ssim.mean():.2f} in SSIM, "
        f"on all {WORDS[len(psnr)]} training seeds; on half the network calls its PSNR is level with PnP-Flow's."
    )
    level = within(np.ptp([restored(who, SHARP)[0] for who in ("db6", "lfm", "bicubic")]))
    yield f"On faces the two are within {level} dB of each other, and of bicubic interpolation"
    both = [[restored(flow, SHARP, value)[1] for flow in ("db6", "lfm")] for value in ("psnr", "ssim")]
    yield (
        f"({pair(both[0], 2, 'against')} dB; by {span(psnr, 2)} dB on {WORDS[len(psnr)]} training seeds) and below it "
        f"in SSIM ({pair(both[1], 3, 'against')}; by {span(-ssim, 3)} on the same three)."
    )
    of = [[alone("faces32-lfm-restoration-flow-priors", f"{SHARP}_{value}"),
           restored("bicubic, 20 images", SHARP, value)[0]] for value in ("psnr", "ssim")]  # fmt: skip
    yield (
        f"is above bicubic on the same 20 faces, by {of[0][0] - of[0][1]:.1f} dB ({pair(of[0], 2, 'against')} dB) and "
        f"{of[1][0] - of[1][1]:.2f} in SSIM ({pair(of[1], 3, 'against')})."
    )
    over = {f"{(restored(who, BOX) - restored('db6', BOX))[1]:.1f}" for who in ("ot-ode", "biharmonic")}
    yield (
        f"In inpainting K-Flow is {-ahead[BOX][0]:.1f} dB behind PnP-Flow on faces and {-ahead[BOX][1]:.1f} dB on "
        f"digits, where OT-ODE and the biharmonic equation alone are {' or '.join(over)} dB above K-Flow."
    )
    peer, flow, steps = (restored(who, NOISY) for who in ("ot-ode", *OUTPUTS))
    yield (
        f"In denoising it is {-ahead[NOISY][0]:.1f} dB behind on faces and {-ahead[NOISY][1]:.1f} dB on digits, where "
        f"OT-ODE too is {peer[1] - flow[1]:.1f} dB above it ({pair((peer[1], flow[1]), 2, 'against')} dB), and below"
    )
    yield f"with steps by band wins {pair(steps - flow)} dB of it back"
    lucy, *flows = (restored(who, BLURRED) for who in ("Richardson–Lucy", "lfm", *OUTPUTS))
    apart, over = [within(gap) for gap in np.ptp(flows, axis=0)], np.subtract(flows, lucy)
    yield (
        f"are within {apart[0]} dB of each other on faces and {apart[1]} dB on digits, PnP-Flow first, and gain "
        f"{span(over[:, 0])} dB and {span(over[:, 1])} dB over Richardson–Lucy. OT-ODE, the fourth flow, is "
        f"{pair(lucy - restored('ot-ode', BLURRED))} dB below Richardson–Lucy."
    )
    names = {"lfm": "PnP-Flow", "ot-ode": "OT-ODE", "db6-displacement": "the displacement", "db6": "K-Flow",
             "Richardson–Lucy": "Richardson–Lucy"}  # fmt: skip
    of = [f"{restored(who, BLURRED, 'ssim')[1]:.3f} for {name}" for who, name in names.items()]
    yield f"{', '.join(of[:-1])}, and {of[-1]}."

    stage = "psnr_by_change/start, x₀"
    bare, filled = ({(flow, task): restored(flow, task, f"{stage}/0.3, {image}") for flow in ("lfm", *OUTPUTS)
                     for task in (SHARP, BOX, BLURRED)} for image in ("Hᵀ y", "interpolated"))  # fmt: skip
    gain = {which: filled[which] - bare[which] for which in bare}
    known = alone("digits-restoration-classical", "validation_psnr")
    yield (
        f"gains K-Flow's velocity output {gain['db6', SHARP][0]:.1f} dB on faces and {gain['db6', SHARP][1]:.1f} dB on "
        f"digits, where it passes bicubic interpolation by {filled['db6', SHARP][1] - known['bicubic']:.1f} dB; the "
        f"displacement output, which does speak of waiting bands, gains {pair(gain['db6-displacement', SHARP])} dB."
    )
    yield (
        f"gains {pair(gain['lfm', SHARP])} dB. In inpainting of digits K-Flow gains {gain['db6', BOX][1]:.1f} dB, and "
        f"ends where the biharmonic equation already was ({pair((filled['db6', BOX][1], known['biharmonic']), 2)} dB); "
        f"in deblurring of digits it gains {gain['db6', BLURRED][1]:.1f} dB; in both on faces "
        f"{within([gain['db6', task][0] for task in (BOX, BLURRED)])} dB at most."
    )
    late = [restored("lfm", task, f"{stage} again/0.3, Hᵀ y") - restored("lfm", task, f"{stage} again/0, Hᵀ y")
            for task in (SHARP, BOX)]  # fmt: skip
    yield f"that gains it {late[0][0]:.1f} dB in super-resolution and {late[1][0]:.1f} dB in inpainting of faces."

    cited, plain, band = ("denoiser", "as cited in E.9"), ("exponent", "0.5"), ("step by band, exponent", "0.5")
    sharp, box, noisy = (gains(task, *cited) for task in (SHARP, BOX, NOISY))
    yield (
        f"it costs the velocity output {-sharp[0, 0]:.1f} dB in super-resolution and {-box[0, 0]:.1f} dB in inpainting "
        f"of faces ({-sharp[1, 0]:.1f} and {-box[1, 0]:.1f} dB on digits), and the displacement output "
        f"{-sharp[0, 1]:.1f} and {-box[0, 1]:.1f} dB ({-sharp[1, 1]:.1f} and {-box[1, 1]:.1f} dB on digits)."
    )
    yield f"it changes faces by less than {within(noisy[0])} dB, and gains {span(noisy[1])} dB on digits."
    apart = [within(gap) for gap in np.max([np.ptp(ablation(task), axis=1) for task in (SHARP, BOX, NOISY)], axis=0)]
    yield f"the two outputs are within {apart[0]} dB of each other on faces and {apart[1]} dB on digits, and in inpaint"
    early = [np.diff(ablation(SHARP, "start", k)[1]) for k in ("0", "0.15")]
    yield f"and on digits by {span(early)} dB from an earlier start alone."
    yield f"the velocity is ahead, by {pair(-np.diff(ablation(SHARP, *cited))[:, 0])} dB."
    level = restored("db6", SHARP) - restored("db6-displacement", SHARP)
    yield f"on digits they are level, and on faces the velocity is {level[0]:.2f} dB ahead."
    early = ", ".join(f"{ablation(BOX, 'start', k)[0, 0]:.1f} dB from {k}" for k in ("0", "0.3", "0.5"))
    yield f"inpainting of faces wants an early start: {early}."
    best, zero = (ablation(BOX, "start", k)[1] for k in ("0.15", "0"))
    yield (
        f"0.15 is best ({best[0]:.1f} dB with the velocity, {best[1]:.1f} dB with the displacement); from 0 the "
        f"displacement loses {best[1] - zero[1]:.1f} dB, but the velocity {best[0] - zero[0]:.1f} dB"
    )
    yield f"gains {-gains(SHARP, 'start', '0')[1, 0]:.1f} dB in super-resolution from the paper's late start."
    two, five = (gains(SHARP, "draws a step", n)[:, 0] for n in ("2", "5"))
    yield f"cost the velocity output {-two[0]:.1f} dB on faces and gain it {two[1]:.1f} dB on digits; five draws"
    yield f"five draws of four steps cost it {pair(-five)} dB"
    draws, few = gains(NOISY, "draws a step", "5"), gains(NOISY, "steps", "5")
    yield f"In inpainting two draws gain {span(gains(BOX, 'draws a step', '2'))} dB. In denoising five draws of four "
    yield f"steps gain {span(draws)} dB, but five steps of *one* draw, a quarter of the calls, gain {span(few)} dB:"
    yield f"Draws, and one step less, add {span(draws - few)} dB."
    yield f"five are better than twenty by the {span(few)} dB above."
    few, ten = -gains(SHARP, "steps", "5"), gains(SHARP, "steps", "10")
    yield (
        f"by {few[0, 0]:.1f} dB (velocity) and {few[0, 1]:.1f} dB (displacement) on faces, {span(few[1])} dB on "
        f"digits. On faces the displacement output is best at ten already, and twenty cost it {ten[0, 1]:.1f} dB."
    )
    few = -gains(BOX, "steps", "5")
    yield f"five cost {span(few[0])} dB on faces, and on digits change less than {within(few[1])} dB."
    root, more = gains(NOISY, *plain), ablation(NOISY, *band) - ablation(NOISY, *plain)
    yield f"gains {span(root[0])} dB on faces and {span(root[1])} dB on digits; a step that follows"
    yield f"gains {span(more[0])} dB more on faces and {span(more[1])} dB more on digits."
    yield f"Super-resolution loses {span(-gains(SHARP, *band), 0)} dB by it"


def assembly():
    """10_assembly."""
    methods = atoms, rigid, two, three = "atoms", "rigid", "kflow-two", "kflow-three"
    codes = packed("start", "pm_atom_by_crystal")[0]
    start, rescaled, clusters = packed("start")[0], packed("rescaled")[0], samples("crystals-start-packing")

    def over(method, size=""):
        return ratio(f"crystals-{size}{method}", f"crystals-{size}{rigid}", "packing/pm_atom")

    def worse(method):
        return sum(by_crystal(method) > by_crystal(rigid))

    times, low, high = over(two)
    seeds, interval = WORDS[len(packed(two))], f"{100 * low - 100:.1f} to {percent(high - 1, 1)}"
    yield f"packing matching of atoms with two bands is {percent(times - 1, 1)} worse than that of rigid flow matching"
    yield (
        f"(95 % interval {interval}, {seeds} training seeds), "
        f"and worse on {worse(two)} of the {len(codes)} held-out crystals"
    )
    yield f"the geometric mean over the {len(codes)} held-out crystals with its 95 % interval"
    yield f"(They are of {len({code[:6] for code in codes})} families"
    yield f"held-out ones {clusters // len(codes)}."
    angle = f"{packed('start', 'rotation_error')[0]:.0f} degrees"
    yield f"every molecule is turned by about {angle}"
    yield f"from 17 molecules turned by {angle} on average"

    assert all((packed(method) < rescaled).all() for method in methods)
    assert all(rescaled - packed(method).min() < start - rescaled for method in methods)
    assert all(packed(method, "rotation_error").min() > 0.9 * packed("start", "rotation_error") for method in methods)
    better = [sum(by_crystal(method) < by_crystal("rescaled")) for method in methods]
    yield f"beats both rows that learn nothing, on {min(better)} to {max(better)} of the {len(codes)} crystals"
    lost = [sum(packed(f"quarter-{method}") > rescaled) for method in methods]
    assert lost[1:] == [0, 0, 0]
    yield f"(With a quarter of the crystals {WORDS[lost[0]]} of {seeds} seeds of freely moved atoms does not.)"
    above = sum((packed(f"{size}atoms") > 1.05 * rescaled).sum() for size in ("", "half-", "quarter-"))
    yield f"{WORDS[above].capitalize()} run of freely moved atoms lies above the picture: it lost a crystal."

    assert abs(over(two, "half-")[0] - times) < 0.01 and min(worse(two), worse(three)) > 0.9 * len(codes)
    assert all(of[1] < 1 < of[2] for of in (over(two, "quarter-"), over(atoms), over(atoms, "half-")))
    yield (
        f"with two bands is {percent(times - 1, 1)} above that of rigid flow matching ({interval}, {seeds} seeds), "
        f"with three bands {percent(over(three)[0] - 1, 1)}, and it is worse on nearly every crystal"
    )
    yield f"[the ledger](12_claims.ipynb) says *{verdict('packing/pm_atom', 'crystals-kflow-two')}*"

    code = "pm_atom_by_crystal/DURNAH"
    free, hard, apart = (packed("quarter-atoms", key) for key in ("pm_atom", code, "diverged"))
    bad, others = free.argmax(), WORDS[len(free) - 1]
    free_others, hard_others, apart_others = (np.delete(values, bad) for values in (free, hard, apart))
    yield (
        f"{WORDS[lost[0]]} of {seeds} seeds loses one held-out crystal, DURNAH ({hard[bad]:.0f} Å), and its mean with "
        f"it ({free[bad]:.2f} Å); the other {others} seeds beat both rows that learn nothing "
        f"({listed(free_others, 2)} Å against {rescaled:.2f} Å). Clusters that flew apart, "
        f"{clusters * apart[bad]:.0f} of {clusters} with the first and {listed(clusters * apart_others, 0)} with the "
        "others, are in no mean."
    )
    yield (
        f"those {others} seeds have {listed(hard_others)} Å on it, rigid flow matching "
        f"{listed(packed('quarter-rigid', code))} Å, the rescaled start {packed('rescaled', code)[0]:.1f} Å."
    )

    touch = {method: first(f"crystals-{method}", "overlap/overlap") for method in methods}
    assert min(touch.values()) > 0.1 and min(touch[two], touch[three]) > touch[rigid]
    assert first("crystals-rigid", "overlap/overlap_crystals") == 0
    whole, half = (
        {key: np.array([packed(size + method, key).mean() for method in methods])
         for key in ("pm_atom", "pm_center", "rotation_error", "centre_error")} for size in ("", "half-"))  # fmt: skip
    assert (whole["centre_error"] > half["centre_error"]).all()
    yield (
        f"All crystals are a little better than half of them in PM (atom), by "
        f"{span(100 - 100 * whole['pm_atom'] / half['pm_atom'])} %, and in orientations, by "
        f"{span(half['rotation_error'] - whole['rotation_error'])} degrees; in PM (center) they are a little worse, by "
        f"{span(100 * whole['pm_center'] / half['pm_center'] - 100)} %, and in the error of centres too. So it is for "
        f"every method, in the mean of {seeds} seeds"
    )


def scale():
    """13_scale."""
    seconds = alone("latents-scale", "seconds")
    assert not any("transform" in name for name in alone("latents-scale", "over_one_band"))
    times = {(bands, side): seconds[f"transform_{bands}_{side}"] / seconds[f"transform_1_{side}"]
             for bands in (2, 3) for side in (16, 128)}  # fmt: skip
    one, two, three = (f"{1000 * seconds[f'transform_{bands}_128']:.0f}" for bands in (1, 2, 3))
    yield (
        f"By the medians drawn above it takes {times[2, 16]:.1f} times as long with two bands as with one at 16×16 and "
        f"{times[2, 128]:.1f} times at 128×128, and {times[3, 16]:.1f} and {times[3, 128]:.1f} times with three. At "
        f"128×128 that is {two} and {three} ms against {one} ms for 16 samples, where a training step of one sample "
        f"takes {1000 * seconds['step_1_128']:.0f} ms."
    )


def autoencoder():
    """00_autoencoder."""
    faces, cifar10 = (alone(f"{name}-reconstruction", "psnr") for name in ("faces", "cifar10"))
    yield f"Held-out faces come back at {faces:.1f} dB, CIFAR-10's images at {cifar10:.1f} dB"
    wavelets = ("db6", "Haar", "Meyer")
    faces, cifar10 = ([alone(f"{name}-latents-energy", "norms")[wavelet] for wavelet in wavelets] for name in (
        "faces", "cifar10"))  # fmt: skip
    assert all(norms[-1] == max(norms) for norms in faces)
    assert all(max(norms[1:3]) < norms[3] < norms[0] for norms in cifar10)
    assert all(np.linalg.norm(norms[:3]) > norms[3] for norms in (*faces, *cifar10))  # two bands
    yield f"of {WORDS[len(faces[0])]} wavelet bands the last has the greatest norm in the latents of faces"


def features():
    """00_features."""
    random, balanced = (alone("digits-calibration", key) for key in ("floor", "floor_balanced"))
    yield f"is {random:.1f} where they are drawn at random and {balanced:.1f} where every class comes equally often."
    draws, images = len(alone("digits-calibration", "floor_draws")), samples("digits-calibration")
    yield f"on the {images:,} training digits alone"
    yield f"{WORDS[draws].capitalize()} disjoint draws of {images // draws} training images"


def k_amplitude():
    """01_k_amplitude."""
    norms = alone("digits-energy", "norms")
    yield f"The mean norm of each band over all {samples('digits-energy'):,} training digits"
    haar, db6 = (percent(norms[name][2] / norms[name][1] - 1, digits) for name, digits in (("Haar", 0), ("db6", 1)))
    yield f"Haar's band 2 has {haar} more mean norm than its band 1, db6's {db6}."
    yield f"So the ledger's row is *{verdict('digits-energy/largest_ratio')}*."
    assert all((np.diff(norms[name]) < 0).all() for name in ("Fourier", "Meyer"))
    yield f"Fourier's {WORDS[len(norms['Fourier'])]} bands and Meyer's {WORDS[len(norms['Meyer'])]} do fall"


def training():
    """03_train."""
    record = seeds_of("digits-db6", "agreement")[0]
    low, high = record.values["agreement_interval"]
    yield (
        f"sees the class that was asked for in {percent(record.values['agreement'], 1)} of {record.samples} samples "
        f"(95 % interval {100 * low:.1f} to {percent(high, 1)}; this run, seed {record.seeds[0]})."
    )
    yield f"judges {record.samples} samples, {record.samples // 10} a class."
    yield f"Its own accuracy on the {record.values['judge_images']} held-out digits"


def properties():
    """The properties."""
    norms = alone("digits-energy", "norms")["db6"]
    assert (np.diff(norms) > 0).any()
    yield f"with {WORDS[len(norms)]} bands of db6 the mean norm does *not* fall from every band to the next"
    faces, digits = (mean(f"{data}-db6", "steering/high_kept_by_high_noise") for data in ("faces32", "digits"))
    assert abs(faces - 0.25) < 0.025 and digits < 0.05
    yield "about a quarter of the high band's content stays on faces, and almost nothing on digits."


def intro():
    """The introduction."""
    plain, guided = "conditional/fd", "guided/fd"
    db6, fourier = ([ratio(f"digits-{run}", "digits-lfm", value)[0] for value in (plain, guided)] for run in (
        "db6", "fourier"))  # fmt: skip
    yield f"With a class db6 and Fourier have {db6[0]:.1f} and {fourier[0]:.1f} times its Fréchet distance"
    yield f"guided {db6[1]:.1f} and {fourier[1]:.1f} times, and more recall"
    here = ratio("faces-db6", "faces-lfm", "unconditional-faces/fd")[0]
    evaluations = ratio("faces-db6", "faces-lfm", "nfe/nfe")[0]
    yield f"K-Flow (db6) has {here:.1f} times the Fréchet distance of ordinary flow matching"
    yield f"an adaptive solver needs {evaluations:.1f} times as many evaluations."
    there = ratio("cifar10-fourier", "cifar10-lfm", "guided-cifar10/fd")[0]
    agreement = [percent(mean(f"cifar10-{run}", "guided-cifar10/agreement")) for run in ("fourier", "lfm")]
    yield f"K-Flow (Fourier) has {there:.1f} times the Fréchet distance of ordinary flow matching"
    ours = ratio("cifar10-db6-uniform-w", "cifar10-lfm", "guided-cifar10/fd")[0]
    yield f"(our variant of db6 {ours:.1f} times)"
    yield f"shows the class asked for less often, {agreement[0]} beside {agreement[1]}"


def readme():
    """The README."""
    db6, fourier = (ratio(f"digits-{run}", "digits-lfm", "guided/fd")[0] for run in ("db6", "fourier"))
    here = ratio("faces-db6", "faces-lfm", "unconditional-faces/fd")[0]
    yield (
        f"{db6:.1f} times its distance (db6) and {fourier:.1f} times (Fourier), "
        f"on faces in latents {here:.1f} times (db6)"
    )
    evaluations = ratio("digits-db6", "digits-lfm", "nfe/nfe")[0]
    yield f"an adaptive solver needs about {evaluations:.1f} times as many evaluations"


PAGES = {
    "notebooks/00_autoencoder.ipynb": autoencoder,
    "notebooks/00_features.ipynb": features,
    "notebooks/01_k_amplitude.ipynb": k_amplitude,
    "notebooks/03_train.ipynb": training,
    "notebooks/06_steering.ipynb": steering,
    "notebooks/07_trajectories.ipynb": trajectories,
    "notebooks/09_restoration.ipynb": restoration,
    "notebooks/10_assembly.ipynb": assembly,
    "notebooks/13_scale.ipynb": scale,
    "notebooks/14_faces.ipynb": faces,
    "notebooks/15_cifar10.ipynb": cifar10,
    "README.md": readme,
    "book/intro.md": intro,
    "book/properties.md": properties,
}


def read_prose(path):
    """The prose of a page in one line."""
    text = (ROOT / path).read_text()
    if path.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("path", PAGES)
def test_the_numbers_in_a_pages_prose_are_the_records(path):
    prose = read_prose(path)
    wrong = [sentence for sentence in PAGES[path]() if sentence not in prose]
    assert not wrong, f"{path} does not say: " + "\n".join(wrong)
