"""The pictures hold what they should, and are written byte for byte the same."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from kflow import figures
from kflow.amplitude import Fourier, Identity, Wavelet
from kflow.data import load_data, to_float
from kflow.flow import HardBump, Linear, Path, SoftBump
from kflow_book import drawings, pipelines


@pytest.fixture(scope="module", autouse=True)
def style():
    figures.use_style()


@pytest.fixture(scope="module")
def digits():
    return to_float(load_data("digits").test[::50])  # one of each class


@pytest.fixture(scope="module")
def trajectory(digits):
    k = torch.linspace(0, 1, 21)
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    return drawings.states(Path(Wavelet(digits.shape[1:]), HardBump(2)), digits, noise, k), k


def texts(figure):
    """All that is written on the canvas, or in legends and titles."""
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [text.get_text() for axes in figure.axes for text in axes.texts] + legends


def pixels(drawn):
    """What an image shows, (H, W, 3), without the enlargement."""
    array = np.asarray(drawn.get_array())
    return array[:: array.shape[0] // 32, :: array.shape[1] // 32]


def test_band_colours_are_fixed_and_distinct():
    assert figures.band_colour(0, 2) == figures.band_colour(0, 4) == "#0072B2"
    assert len(set(figures.BAND_COLOURS)) == 6
    assert figures.band_colour(0, 1) == figures.GREY
    # Under the commonest colour blindness (deuteranopia, Viénot's projection) low and high stay apart.
    project = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    low, high = (project @ np.array(to_rgb(c)) for c in figures.BAND_COLOURS[:2])
    assert np.abs(low - high).max() > 0.3


def test_image_grid(digits):
    figure = figures.image_grid(digits, 5, [str(i) for i in range(10)], ["a", "b"], list("vwxyz"))
    images = figure.axes[0].images
    assert len(images) == 10
    assert {"0", "9", "a", "b", "v", "z"} <= set(texts(figure))
    expected = load_data("digits").test[::50]
    for drawn, image in zip(images, expected):
        assert (pixels(drawn)[..., 0] == image[0].numpy()).all()
    left, right, bottom, top = images[6].get_extent()
    assert right - left == pytest.approx(bottom - top)  # square
    assert left == pytest.approx(images[1].get_extent()[0])  # the second column
    assert top > images[1].get_extent()[2]  # the second row
    assert figure.get_figwidth() <= figures.WIDTH + 0.01


def test_image_grid_takes_bytes_colour_and_gaps():
    colour = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    figure = figures.image_grid([colour[0], None, colour[2]])
    assert len(figure.axes[0].images) == 2
    assert (np.asarray(figure.axes[0].images[1].get_array())[::32, ::32] == colour[2].permute(1, 2, 0).numpy()).all()
    with pytest.raises(ValueError, match="2 channels, allowed are 1 and 3"):
        figures.image_grid(torch.zeros(1, 2, 8, 8))


def test_strip(trajectory):
    states, k = trajectory
    figure = figures.strip(states, k, HardBump(2), samples=3, columns=11, row_labels=list("abc"))
    assert len(figure.axes[0].images) == 33
    shown = texts(figure)
    assert {"k = 0", "0.5", "1", "a", "c", "band 0 (low scaling)", "band 1 (high scaling)"} <= set(shown)
    last = figures.to_uint8(states[-1, 0, 0]).numpy()
    assert (pixels(figure.axes[0].images[10])[..., 0] == last).all()
    # The bar: low scaling from the middle of the first column to the middle, then high scaling.
    low, high = (part.get_paths()[0].get_extents() for part in figure.axes[0].collections)
    centres = [np.mean(figure.axes[0].images[i].get_extent()[:2]) for i in (0, 5, 10)]
    assert low.x0 == pytest.approx(centres[0], abs=0.02)
    assert high.x1 == pytest.approx(centres[2], abs=0.02)
    colours = [to_hex(part.get_facecolor()[0]).upper() for part in figure.axes[0].collections]
    assert colours == list(figures.BAND_COLOURS[:2])


def test_strip_bar_shows_shares(trajectory):
    states, k = trajectory
    heights = {}
    for name, schedule in {"hard": HardBump(2), "soft": SoftBump(2, 0.5)}.items():
        bar = figures.strip(states, k, schedule).axes[0].collections[0]
        outline = bar.get_paths()[0].vertices
        heights[name] = len(np.unique(outline[:, 1].round(3)))
    assert heights["hard"] == 2 < 10 < heights["soft"]
    alone = figures.strip(states, k, Linear())
    assert "one band: everything at once" in texts(alone)


def test_class_grid():
    data = load_data("digits")
    figure = figures.class_grid(data.test[::25], data.test_labels[::25], data.classes, columns=3)
    assert len(figure.axes[0].images) == 20  # two of each class, and a gap
    assert set(data.classes) <= set(texts(figure))


def test_band_pictures(digits):
    shape = digits.shape[1:]
    figure = drawings.band_pictures({"four": Fourier(shape, 4), "two": Wavelet(shape)}, digits[:1])
    images = figure.axes[0].images
    assert len(images) == 6 + 4
    assert {"image", "band 0", "band 3", "sum of bands", "four", "two", "±1"} <= set(texts(figure))
    assert (pixels(images[0]) == pixels(images[5])).all()  # the sum is the image
    part = Fourier(shape, 4).project(digits[:1], 1)[0, 0]
    scale = part.abs().flatten().quantile(0.995)
    assert (pixels(images[2])[..., 0] == figures.to_uint8(part / scale).numpy()).all()
    assert f"±{scale:.2g}" in texts(figure)
    frames = [to_hex(p.get_edgecolor()).upper() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert frames.count("#0072B2") == 2 and frames.count(figures.BAND_COLOURS[3]) == 1


def test_schedule_curves():
    figure = drawings.schedule_curves({"hard": HardBump(3), "ramp": HardBump(2, connection="linear"), "one": Linear()})
    assert len(figure.axes) == 6
    weights, rates = figure.axes[0], figure.axes[3]
    assert [len(axes.lines) for axes in figure.axes] == [5, 3, 1, 5, 3, 1]  # bands and joins
    assert [axes.get_title() for axes in figure.axes[:3]] == ["hard", "ramp", "one"]
    k, w = weights.lines[0].get_data()
    np.testing.assert_allclose(w, HardBump(3)(torch.as_tensor(k))[0][:, 0])
    assert max(rates.lines[0].get_ydata()) == pytest.approx(4.5, rel=1e-3)
    assert "band 2 (high scaling)" in texts(figure) and "one band: everything at once" in texts(figure)


def test_band_energy(digits):
    shape = digits.shape[1:]
    used = {"Fourier": Fourier(shape, 3), "db6": Wavelet(shape)}
    noise = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    figure = drawings.band_energy(
        {n: d.energy(noise) for n, d in used.items()}, {n: d.sizes() for n, d in used.items()}
    )
    total, density = figure.axes
    assert [label.get_text() for label in total.get_yticklabels()] == ["Fourier", "db6"]
    assert total.get_xlabel() == r"$\|P_b x\| \,/\, \|x\|$" and density.get_xscale() == "log"
    boxes = [line.get_xdata() for line in density.lines if len(line.get_xdata()) == 5]
    assert len(boxes) == 5
    assert all(abs(np.mean(box) - 1) < 0.05 for box in boxes)  # white noise has norm 1 per dimension in every band


def test_spectrum_finds_the_slope_of_made_noise():
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(128)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt().clamp(min=1 / 128)
    white = torch.randn(20, 1, 128, 128, generator=generator, dtype=torch.float64)
    pink = torch.fft.ifft2(torch.fft.fft2(white) / radius).real
    figure = drawings.spectrum({"white": white, "1/f": pink})
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    slopes = [float(name.split("slope ")[1].split(" ±")[0]) for name in names]
    assert names[0].startswith("white (N = 20)") and slopes == pytest.approx([0, -2], abs=0.11)
    at, power = drawings.radial_power(white)
    assert at[-1] == 0.5 and power.shape == (20, 64)


def test_band_motion(trajectory):
    states, k = trajectory
    figure = figures.band_motion(states, k, Wavelet(states.shape[2:]), HardBump(2))
    speed, left = figure.axes
    low, high = (line.get_data() for line in speed.lines[:2])
    assert max(low[1][low[0] > 0.5]) < 1e-3 < max(low[1]) and max(high[1][high[0] < 0.5]) < 1e-3 < max(high[1])
    weights = HardBump(2)(k)[0]
    for band in range(2):
        np.testing.assert_allclose(left.lines[band].get_ydata(), 1 - weights[:, band], atol=1e-4)
    alone = figures.band_motion(states, k, Identity(states.shape[2:]))
    assert len(alone.axes[0].lines) == 1


def test_loss_curves():
    images = np.arange(1, 41) * 1000.0
    log = pd.DataFrame({"images": images, "loss": 1 / images, "loss_band_0": 2 / images, "loss_band_1": 3 / images})
    log.loc[3, "loss_band_1"] = float("nan")
    figure = figures.loss_curves(log)
    lines = figure.axes[0].lines
    assert len(lines) == 6 and len(lines[4].get_xdata()) == 39
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["all", "band 0 (low scaling)", "band 1 (high scaling)"]
    assert len(figures.loss_curves(log[["images", "loss"]]).axes[0].lines) == 2


def test_line_chart_draws_means_and_the_range_over_seeds():
    rows = [(m, seed, x, x + seed + 10 * (m == "b")) for m in ("a", "b") for seed in (0, 1, 2) for x in (1, 10)]
    frame = pd.DataFrame(rows, columns=["model", "seed", "x", "y"]).assign(kind="left")
    frame = pd.concat([frame, frame.assign(kind="right")])
    figure = figures.line_chart(frame, "count", "distance", panels="kind", log="x", mark=5.0, join=2.0)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("left", "right")
    first, second, dotted, upright = left.lines
    assert first.get_ydata().tolist() == [2, 11] and second.get_ydata().tolist() == [12, 21]
    assert dotted.get_ydata() == [5.0, 5.0] and upright.get_xdata() == [2.0, 2.0]
    heights = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 12), "from the smallest to the largest seed"
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "10"]
    assert texts(figure) == ["a", "b"]


def test_dot_chart_has_a_dot_for_each_seed_and_a_line_at_the_mean():
    frame = pd.DataFrame({"model": ["a", "a", "a", "b"], "y": [1.0, 2.0, 6.0, 4.0]})
    figure = drawings.dot_chart(frame, "distance", {"LFM": 4.0})
    (axes,) = figure.axes
    assert sorted(x for dots in axes.collections for x, _ in dots.get_offsets()) == pytest.approx([1, 2, 4, 6])
    assert [line.get_xdata()[0] for line in axes.lines] == [3, 4, 4]
    assert texts(figure) == ["LFM"]


def test_save_table(tmp_path):
    figures.save_table(pd.DataFrame({"fd": [1 / 3]}, index=["LFM"]), "table", tmp_path)
    assert (tmp_path / "table.csv").read_text() == ",fd\nLFM,0.333333\n"
    figures.save_table(pd.DataFrame({"fd": [1.0]}), "nothing", "")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_photograph():
    picture = drawings.photograph("chelsea", size=16)
    assert picture.shape == (1, 3, 16, 16) and picture.abs().max() <= 1
    assert drawings.photograph("camera", 64, crop=64).shape == (1, 1, 64, 64)


def test_pipelines():
    overview = pipelines.pipeline_overview()
    assert len(overview.axes[0].images) == 10
    assert sum("mathcal{F}" in text for text in texts(overview)) == 5
    comparison = pipelines.pipeline_comparison()
    assert len(comparison.axes[0].images) == 6 + 8
    assert "16 × 16: $d$/16 numbers" in texts(comparison) and "band 2 moves" in texts(comparison)


@pytest.mark.parametrize("kind, kept", [("low-to-high", 1), ("high-to-low", 0)])
def test_pipeline_of_steering_keeps_one_noise(kind, kept):
    images = pipelines.pipeline_steering(kind).axes[0].images
    assert len(images) == 6 + 15
    noise = [pixels(image) for image in images[:6]]
    same = [all((noise[3 * band] == noise[3 * band + row]).all() for row in (1, 2)) for band in (0, 1)]
    assert same == [kept == 0, kept == 1]
    training = load_data("digits").train[::15, 0].numpy()
    for image in images[-3:]:
        assert np.abs(training - pixels(image)[..., 0].astype(float)).max((1, 2)).min() <= 3  # it ends in a digit


def test_pipeline_of_class_dropping():
    figure = pipelines.pipeline_steering("class")
    assert len(figure.axes[0].images) == 12
    assert {"$k$ = 0.3", r"$\tau$ = 0.3"} <= set(texts(figure))
    assert any("class dropped" in text for text in texts(figure))
    with pytest.raises(ValueError, match="kind is 'up', allowed are class, low-to-high, high-to-low"):
        pipelines.pipeline_steering("up")


def test_saved_bytes_are_the_same(tmp_path, trajectory):
    states, k = trajectory
    for folder in ("a", "b"):
        figures.save(figures.strip(states, k, HardBump(2), samples=1), "strip", tmp_path / folder)
        figures.save(drawings.schedule_curves({"hard": HardBump(2)}), "curves", tmp_path / folder)
    names = ["curves.png", "curves.svg", "strip.png"]  # pixels are not wrapped in an SVG too
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a" / "curves.svg").read_bytes()
    figures.save(drawings.schedule_curves({"hard": HardBump(2)}), "curves", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_show_displays_and_saves(tmp_path, capsys):
    figures.show(drawings.schedule_curves({"hard": HardBump(2)}), "curves", tmp_path)
    assert "Figure" in capsys.readouterr().out and (tmp_path / "curves.svg").exists()


def test_ground_is_white_and_opaque(tmp_path, digits):
    from PIL import Image

    figures.save(figures.image_grid(digits[:2], row_labels=["digits"]), "grid", tmp_path)
    corner = Image.open(tmp_path / "grid.png").convert("RGBA").getpixel((1, 1))
    assert corner == (255, 255, 255, 255)


def test_a_model_has_one_colour_in_every_chart():
    colours = figures.model_colours(["Fourier", "db6", "PCA", "db6, displacement"])
    others = figures.model_colours(["LFM", "db6, reversed", "db6"])
    assert colours["db6"] == others["db6"] and others["LFM"] == "black"
    assert len(set(colours.values())) == 4 and len(set(others.values())) == 3
    assert figures.model_colours(["alone"]) == {"alone": figures.BAND_COLOURS[0]}
